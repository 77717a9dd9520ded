"""How many tokens each expert took, a line for each row of metrics: RUN/expert_load.jsonl. Beside the metrics and not
among them: a board would draw a chart of every expert."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.routing_totals import RoutingTotals
from train.line_file import LineFile
from train.metrics.jsonl import read_jsonl
from train.metrics.summary import standing_rows

EXPERT_LOAD_FILE = "expert_load.jsonl"
"""In the run's folder."""
CHOSEN = "chosen"
"""Key of (token, expert) pairs by layer and logical expert, of the row's step; those that capacity dropped too."""


class ExpertLoadLog:
    """The file, which a model without experts leaves empty. Rank 0 only. Raises OSError where it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self._lines = LineFile(folder / EXPERT_LOAD_FILE)

    def append(self, step: int, totals: RoutingTotals) -> None:
        """Add the loads of `step`, from the totals of its global batch. Waits for the device."""
        if totals.chosen_LE.numel():
            chosen = totals.chosen_LE.long().tolist()
            self._lines.append(json.dumps({"train/step": step, CHOSEN: chosen}).encode())

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_expert_load(folder: Path) -> list[tuple[int, list[list[int]]]]:
    """Steps that stand, and their loads by layer and expert; [] if a run wrote none."""
    path = folder / EXPERT_LOAD_FILE
    rows: list[Mapping[str, Any]] = [*read_jsonl(path)] if path.exists() else []
    return [(int(row["train/step"]), row[CHOSEN]) for row in standing_rows(rows)]
