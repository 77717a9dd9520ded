"""What the numbers of a run must never stand without: that it was no training, but a comparison."""

from collections.abc import Mapping
from typing import Any

from models.config import RoutingChoice

BALANCED = "balanced routing"
"""Experts were dealt out to tokens: loads are even as no router makes them, and what is learned is no model."""


def label_of(settings: Mapping[str, Any]) -> str | None:
    """Of a run by its configuration as plain values; None for one that is what it seems."""
    routing = settings.get("model", {}).get("moe", {}).get("routing")
    return BALANCED if routing == RoutingChoice.balanced.value else None


def labelled(name: str, label: str | None) -> str:
    """A run's name with its label."""
    return f"{name} ({label})" if label else name
