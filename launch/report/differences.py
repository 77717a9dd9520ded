"""In what the configurations of runs differ, and nothing else of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LEFT_OUT = ("environment.", "run.", "logging.")
"""Where a run was and is: told elsewhere, or different in all."""


def differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """By dotted key, each run's value, of the keys that are not the same in all; – where a run has no such key."""
    flat = [dict(_flat(one)) for one in settings]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if not key.startswith(LEFT_OUT)]
    values = {key: [one.get(key, "–") for one in flat] for key in keys}
    return {key: listed for key, listed in values.items() if len(set(listed)) > 1}


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}" if key else name)
    elif isinstance(node, bool):
        yield key, str(node).lower()
    else:
        yield key, "null" if node is None else str(node)
