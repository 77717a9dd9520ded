"""The pipeline schedules of runs that had one, drawn; on paper, where a forward takes as long as either half of a
backward. What was idle in fact is `bubble` among the step's parts."""

from collections.abc import Sequence
from dataclasses import dataclass

from launch.report.run_view import RunView
from launch.schedule_picture import Picture
from parallel.mesh import Degrees
from parallel.pipeline.action import Schedule
from parallel.pipeline.schedules import ScheduleName, build_schedule
from parallel.pipeline.simulator import Costs, simulate
from train.metrics.breakdown import WALL


@dataclass(frozen=True)
class PipelineDrawing:
    """One schedule, of one run or several."""

    title: str
    labels: list[str]
    bubble: float
    """Part of the ranks' time that is idle on paper."""
    measured: dict[str, float]
    """Part of its step that bubbles took, of each run whose steps were divided."""
    svg: str


def pipelines(runs: Sequence[RunView]) -> list[PipelineDrawing]:
    """A drawing for each different schedule."""
    found: dict[tuple[ScheduleName, int, int, int | None, bool], list[RunView]] = {}
    for run in runs:
        strategy = run.job.strategy
        degrees = Degrees.resolve(strategy, run.summary.world_size)
        if degrees.pp > 1:
            n_micro_batches = run.job.train.micro_batches(degrees.dp, degrees.pp)
            paired = run.job.overlap.forward_backward
            asked = (strategy.schedule, degrees.pp, n_micro_batches, strategy.stages_per_rank, paired)
            found.setdefault(asked, []).append(run)
    return [_drawing(build_schedule(*asked), of) for asked, of in found.items()]


def _drawing(schedule: Schedule, runs: Sequence[RunView]) -> PipelineDrawing:
    simulation = simulate(schedule, Costs())
    divided = [(run.label, run.breakdown) for run in runs if run.breakdown]
    return PipelineDrawing(
        f"{schedule.name}, {schedule.n_ranks} ranks, {schedule.n_micro_batches} micro-batches",
        [run.label for run in runs],
        simulation.bubble,
        {label: seconds.get("bubble", 0.0) / seconds[WALL] for label, seconds in divided},
        Picture(schedule, simulation).svg(),
    )
