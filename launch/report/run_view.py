"""One run as a page shows it, read from its folder alone; going, ended or dead."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from conf.compose import read_job
from conf.schema import JobConfig
from launch.run_summary import read_summary
from models.config import ConfigError
from train.ledger.books import Books
from train.ledger.fold import fold
from train.ledger.read import read_ledger
from train.metrics.breakdown import COMMUNICATION, mean_breakdown
from train.metrics.jsonl import METRICS_FILE, read_jsonl
from train.metrics.label import labelled
from train.metrics.summary import RunSummary, standing_rows, steady_rows
from train.run_folder import read_config


@dataclass(frozen=True)
class RunView:
    """What there is to draw."""

    label: str
    """What tells it from the others."""
    folder: Path
    rows: list[dict[str, Any]]
    """Of steps that stand."""
    summary: RunSummary
    job: JobConfig
    settings: dict[str, Any]
    """Its config.yaml, plain."""
    breakdown: dict[str, float]
    """Seconds a step by bucket; empty if steps were not divided."""
    books: Books | None
    """None without a ledger."""

    @classmethod
    def read(cls, folder: Path, label: str) -> "RunView | None":
        """From `folder`; None if it has logged no step with a loss and a speed.

        Raises:
            ConfigError: if it is no run's, or another version's.
        """
        settings = read_config(folder / "config.yaml")
        try:
            rows = standing_rows(read_jsonl(folder / METRICS_FILE))
            summary = read_summary(folder, rows, settings)
        except (OSError, ValueError):
            return None
        timed = [row for row in rows if "perf/step_time_s" in row]
        try:
            books = fold(read_ledger(folder))
        except ConfigError:  # of a run of which only the metrics were kept
            books = None
        job = read_job(folder / "config.yaml")
        name = labelled(label, summary.label)
        return cls(name, folder, rows, summary, job, settings, mean_breakdown(steady_rows(timed)), books)

    def column(self, key: str) -> list[tuple[int, float]]:
        """Steps and values of the rows that have `key`, without what is no number."""
        return [(int(row["train/step"]), row[key]) for row in self.rows if key in row and isfinite(row[key])]

    @property
    def exposed(self) -> dict[str, float]:
        """Seconds a step by kind of communication, of the kinds that have any."""
        every = {kind: self.breakdown.get(f"exposed_comm/{kind}", 0.0) for kind in COMMUNICATION}
        return {kind: seconds for kind, seconds in every.items() if seconds > 0}


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that tell `folders` apart."""
    for length in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        found = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(found)) == len(folders):
            break
    return found
