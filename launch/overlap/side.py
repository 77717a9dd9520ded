"""What the jobs of one side of a comparison measured: a knob off, or on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from launch.bench.job import Job
from launch.bench.result import PointResult
from launch.run_rows import read_rows, timed_rows
from train.data.atomic_json import read_json
from train.metrics.breakdown import APART, BUCKETS, mean_seconds
from train.trace.chrome import read_trace
from train.trace.issue_order import Begun, issue_order, updates_behind_backward
from train.trace.kernels import Category
from train.trace.sweep import KERNELS
from train.trace.tracer import TRACES, summary_beside

EXPOSED = "exposed_comm/"
"""What the bucket of a kind of communication begins with."""
OPTIMIZER = "compute_opt"
"""The bucket of the norm, clipping and the update of weights."""
Losses = Mapping[int, float]
"""By step, of those that were logged."""


@dataclass(frozen=True)
class Step:
    """One traced step of one rank."""

    total_s: Mapping[str, float] | None
    """By bucket, seconds that the device was busy with it, hidden or not; None without kernels: on a CPU."""
    alone_s: Mapping[str, float] | None
    """The part of these, of communication, beside which nothing was computed; what is missing had none."""
    begun: list[Begun]
    """Its collectives."""
    updates: tuple[int, int]
    """Of weights: how many had begun before backward's last product, and how many there are."""

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """The last one that was traced in the folder `run`, of the first rank that traced it; None if none was.

        Raises:
            TraceError: if it cannot be read.
        """
        steps = sorted((run / TRACES).glob("step-*"))
        traces = sorted(steps[-1].glob("rank-*.json.gz"), key=lambda path: (len(path.name), path.name)) if steps else []
        if not traces:
            return None
        trace = read_trace(traces[0])
        summary = read_json(summary_beside(traces[0])) or {}
        return cls(*busy_s(summary), issue_order(trace), updates_behind_backward(trace))


@dataclass(frozen=True)
class Side:
    """One point's jobs, as far as they are done."""

    speeds: Mapping[int, float] = field(default_factory=dict)
    """Tokens/s by round."""
    memory_gib: float | None = None
    """Peak on rank 0, the median of rounds."""
    exposed_s: Mapping[str, float] = field(default_factory=dict)
    """By bucket, seconds a step, mean over ranks and rounds; what is missing had no time. {}: no round is done."""
    losses: Mapping[int, Losses] = field(default_factory=dict)
    """By round."""
    step: Step | None = None
    """That was traced."""
    device: str | None = None
    """Name of rank 0's."""

    @classmethod
    def read(cls, jobs: Sequence[Job], result: PointResult) -> Self:
        """Of the jobs of one point, whose numbers are `result`.

        Raises:
            ConfigError: if one of their files cannot be read.
        """
        rows = {job.round: read_rows(job.folder) for job in jobs if job.done and job.round}
        measured = [timed_rows(rows[one.number], one.settings) for one in result.rounds if one.number in rows]
        memory = result.spread("peak_memory_gib")
        traced = (Step.read(job.folder) for job in jobs if job.done)
        return cls(
            speeds={one.number: one.summary.tokens_per_sec for one in result.rounds if one.number and one.summary},
            memory_gib=memory.median if memory else None,
            exposed_s=_mean([mean_seconds(of_it, (*BUCKETS, *APART)) for of_it in measured]),
            losses={number: losses_of(of_it) for number, of_it in rows.items()},
            step=next((step for step in traced if step), None),
            device=result.summaries[0].device if result.summaries else None,
        )


def busy_s(summary: Mapping[str, Any]) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """By bucket, what the kernels of a trace's `summary` took, and of communication what they took while nothing was
    computed; None if it is of a host's ranges."""
    if summary.get("source") != KERNELS:
        return None, None
    update = summary["compute_by_category_s"].get(Category.optimizer.value, 0.0)
    total, alone = (
        {f"{EXPOSED}{kind}": seconds for kind, seconds in summary[by_kind].items()}
        for by_kind in ("communication_by_kind_s", "exposed_by_kind_s")
    )
    return total | {OPTIMIZER: update}, alone


def losses_of(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """By step."""
    return {row["train/step"]: row["train/loss"] for row in rows if "train/loss" in row}


def _mean(jobs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Over jobs; one that lacks a bucket spent nothing in it."""
    buckets = dict.fromkeys(bucket for one in jobs for bucket in one)
    return {bucket: sum(one.get(bucket, 0.0) for one in jobs) / len(jobs) for bucket in buckets}
