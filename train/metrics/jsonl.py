"""The run's own record of its metrics: one JSON object a line, appended."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.line_file import LineFile

METRICS_FILE = "metrics.jsonl"
"""In the run's folder."""

Row = dict[str, float | int | str]
"""One row as it is stored: numbers, and the three names that strict JSON needs for the numbers it lacks."""

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def strict_row(row: Mapping[str, float | int]) -> Row:
    """`row` with every value as `strict_value` gives it: one and the same row for the file and for wandb."""
    return {key: strict_value(value) for key, value in row.items()}


def strict_value(value: Any) -> Any:
    """`value`, but NaN and the infinities by name: "NaN", "Infinity", "-Infinity".

    Bare NaN is not JSON, and null would not say which of the three it was. wandb's server and pages read the same three
    names as numbers.
    """
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain_value(value: Any) -> Any:
    """The inverse of `strict_value`."""
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


class JsonlLog:
    """An append-only file of rows, safe against death of the process at any instant (see LineFile). Raises OSError
    where it cannot be made."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = LineFile(path)

    def append(self, row: Row) -> None:
        """Add one row. Raises ValueError for a bare NaN or infinity (see `strict_row`)."""
        self._lines.append(json.dumps(row, allow_nan=False).encode())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._lines.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of `path` in the order written, the non-finite numbers as floats again; torn lines are left out.

    A rollback or a restart writes some steps a second time: both rows are here. Raises FileNotFoundError.
    """
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a proper beginning of an object never parses, so nothing torn gets through
            continue
        rows.append({key: plain_value(value) for key, value in row.items()})
    return rows
