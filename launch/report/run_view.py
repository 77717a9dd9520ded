"""One run as a page shows it, read from its folder alone; going, ended or dead."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from conf.compose import read_job
from conf.schema import JobConfig
from launch.run_rows import read_rows, timed_rows
from launch.run_summary import read_summary
from launch.sweep.point_job import State
from models.config import ConfigError
from train.ledger.books import Books
from train.ledger.fold import fold
from train.ledger.read import read_ledger
from train.metrics.breakdown import COMMUNICATION, mean_breakdown
from train.metrics.label import labelled
from train.metrics.summary import RunSummary
from train.run_folder import read_config


@dataclass(frozen=True)
class RunView:
    """What there is to draw."""

    label: str
    """What tells it from the others, and what its numbers must not be shown without."""
    is_done: bool
    """Whether it may be ranked: not, if a sweep says that its point failed, was cut off or goes on."""
    folder: Path
    rows: list[dict[str, Any]]
    """Of steps that stand."""
    summary: RunSummary
    job: JobConfig
    settings: dict[str, Any]
    """Its config.yaml, plain."""
    torch: str
    """Its version."""
    breakdown: dict[str, float]
    """Seconds a step by bucket; empty if steps were not divided."""
    books: Books | None
    """None without a ledger."""

    @classmethod
    def read(cls, folder: Path, label: str, state: str | None = None) -> "RunView | None":
        """From `folder`; None if it has logged no step with a loss and a speed. `state`: of a sweep's point, as the
        sweep says it.

        Raises:
            ConfigError: if it is no run's, or another version's.
        """
        settings, rows = read_config(folder / "config.yaml"), read_rows(folder)
        try:
            torch = settings["environment"]["packages"]["torch"]
            summary = read_summary(folder, rows, settings)
        except ValueError:
            return None
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{folder} is a run of another version ({error}): name another run") from error
        try:
            books = fold(read_ledger(folder))
        except ConfigError:  # of a run of which only the metrics were kept
            books = None
        job = read_job(folder / "config.yaml")
        is_done = state in (None, State.done.value)
        name = labelled(labelled(label, summary.label), None if is_done else state)
        breakdown = mean_breakdown(timed_rows(rows, settings))
        return cls(name, is_done, folder, rows, summary, job, settings, torch, breakdown, books)

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
