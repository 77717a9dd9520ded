"""What a run left in its folder, read back without a process group."""

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


@dataclass(frozen=True)
class RunRecord:
    """A run folder, of a job that goes on, ended or died."""

    folder: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl; no rows while there is no file."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def step_rows(self) -> list[dict[str, Any]]:
        """Of steps: the last row of an attempt that ended in order has its books alone."""
        return [row for row in self.rows if "train/loss" in row]

    @property
    def config(self) -> dict[str, Any]:
        """config.yaml."""
        return yaml.safe_load((self.folder / "config.yaml").read_text())

    def column(self, key: str) -> list[float]:
        """`key` of the rows that have it."""
        return [row[key] for row in self.rows if key in row]

    @property
    def last_step(self) -> int:
        """The step of the last row; 0 before the first."""
        return int(self.rows[-1]["train/step"]) if self.rows else 0

    @property
    def saved_steps(self) -> list[int]:
        """Steps with a finished checkpoint."""
        names = (path.name for path in (self.folder / "checkpoints").glob("step-*"))
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))

    def tensors(self, step: int) -> dict[str, Tensor]:
        """Every tensor of the checkpoint after `step`, whole."""
        reader = dcp.FileSystemReader(self.folder / "checkpoints" / f"step-{step:08d}")
        state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with warnings.catch_warnings(action="ignore"):  # "torch.distributed is uninitialized": so it is
            dcp.load(state, storage_reader=reader, no_dist=True)
        return state


def reproducible(row: dict[str, Any]) -> dict[str, Any]:
    """What a second run of the same step must give again: all but times and memory."""
    return {
        key: value
        for key, value in row.items()
        if not key.startswith(("perf/", "mem/", "time", "power/", "cost/", "ckpt/", "goodput/"))
    }
