"""What a comparison's folder holds: each point's rounds, their median and spread, and where its steps' time went."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from launch.bench.counts import Counts, most, read_counts
from launch.bench.job import Job
from launch.jobs.points import Point
from launch.jobs.torchrun_job import Failure
from launch.run_rows import read_rows, timed_rows
from train.data.atomic_json import read_json
from train.metrics.breakdown import mean_breakdown, mean_of
from train.metrics.jsonl import strict_value
from train.metrics.label import labelled
from train.metrics.summary import RunSummary, interquartile_range
from train.metrics.verdict import TracedStep, judge
from train.run_folder import read_config

NUMBERS = ("tokens_per_sec", "step_time_s", "mfu", "peak_memory_gib")
"""Of a summary, that have a median and a spread over rounds."""


@dataclass(frozen=True)
class Spread:
    """One number over the rounds."""

    median: float
    least: float
    most: float
    iqr: float
    """Third quartile less the first; 0 of one round."""

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values), interquartile_range(values))


@dataclass(frozen=True)
class Round:
    """One job's numbers."""

    number: int | None
    """None: of none, see Job."""
    summary: RunSummary | None
    """None if it failed, or has not been run."""
    failure: Failure | None
    breakdown: dict[str, float]
    trace: TracedStep | None
    """Of rank 0, in its last traced step; None without kernels in it, too."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its configuration, plain."""
    counts: Counts = field(default_factory=dict)
    """Of one step."""

    @classmethod
    def read(cls, job: Job) -> "Round":
        """From its folder.

        Raises:
            ConfigError: if one of its files cannot be read.
        """
        if not job.done:
            return cls(job.round, None, job.failure, {}, None)
        traces = sorted((job.folder / "traces").glob("step-*/rank-0.summary.json"))
        swept = read_json(traces[-1]) if traces else None
        settings = read_config(job.folder / "config.yaml")
        breakdown = mean_breakdown(timed_rows(read_rows(job.folder), settings))
        n_layers = settings["model"]["n_layers"] if settings["strategy"]["pp"] == 1 else None
        counts = read_counts(job.folder, swept, n_layers)
        return cls(job.round, job.summary(), None, breakdown, TracedStep.read(swept), settings, counts)


@dataclass(frozen=True)
class PointResult:
    """One point's rounds."""

    point: Point
    rounds: list[Round]
    traced: Round | None
    """The job that was traced beside them."""

    @classmethod
    def read(cls, jobs: Sequence[Job]) -> "PointResult":
        """Of the jobs of one point."""
        read = [Round.read(job) for job in jobs]
        rounds = [one for one in read if one.number is not None]
        return cls(jobs[0].point, rounds, next((one for one in read if one.number is None), None))

    @property
    def title(self) -> str:
        """Its name, and what its numbers must not be shown without."""
        label = next((summary.label for summary in self.summaries if summary.label), None)
        return labelled(self.point.name, label)

    @property
    def summaries(self) -> list[RunSummary]:
        """Of the rounds that have numbers."""
        return [one.summary for one in self.rounds if one.summary]

    @property
    def failures(self) -> list[Failure]:
        """Of the jobs that have none to come."""
        return [one.failure for one in self._jobs if one.failure]

    @property
    def breakdown(self) -> dict[str, float]:
        """The mean over rounds; empty if steps were not divided."""
        return mean_of([one.breakdown for one in self.rounds if one.breakdown])

    @property
    def trace(self) -> TracedStep | None:
        """Of the last job that has one."""
        return next((one.trace for one in reversed(self._jobs) if one.trace), None)

    @property
    def counts(self) -> Counts:
        """Of one step, over its jobs the most."""
        return most(one.counts for one in self._jobs)

    @property
    def bound_by(self) -> str | None:
        """What bounds it, and what to try first; None if steps were not divided."""
        verdict = judge(self.breakdown, self.trace)
        return verdict.sentence(next(one.settings for one in self.rounds if one.settings)) if verdict else None

    @property
    def n_jobs(self) -> int:
        """Rounds, and the traced one."""
        return len(self._jobs)

    @property
    def _jobs(self) -> list[Round]:
        return [*self.rounds, *([self.traced] if self.traced else [])]

    def spread(self, name: str) -> Spread | None:
        """Of one of NUMBERS; None if no round has it."""
        values = [value for summary in self.summaries if (value := getattr(summary, name)) is not None]
        return Spread.of(values) if values else None

    def plain(self) -> dict[str, Any]:
        """As it stands in bench.json."""
        spreads = {name: asdict(spread) for name in NUMBERS if (spread := self.spread(name))}
        return {
            "name": self.point.name,
            "words": list(self.point.words),
            **spreads,
            "breakdown_s": self.breakdown,
            "bound_by": self.bound_by,
            "counts": self.counts,
            "rounds": [_plain_round(one) for one in self.rounds],
            "traced": _plain_round(self.traced) if self.traced else None,
        }


def by_speed(results: Sequence[PointResult]) -> list[PointResult]:
    """The fastest first, those without numbers last."""

    def speed(result: PointResult) -> float:
        spread = result.spread("tokens_per_sec")
        return spread.median if spread else -1.0

    return sorted(results, key=speed, reverse=True)


def _plain_round(one: Round) -> dict[str, Any]:
    summary = {name: strict_value(value) for name, value in asdict(one.summary).items()} if one.summary else None
    return {
        "round": one.number,
        "summary": summary,
        "failure": asdict(one.failure) if one.failure else None,
        "breakdown_s": one.breakdown,
        "trace": asdict(one.trace) if one.trace else None,
    }
