"""Every schedule that can run on so many ranks, on paper, with and without pairs that hide the all-to-all."""

from dataclasses import dataclass

from models.config import ConfigError
from parallel.pipeline.action import Schedule
from parallel.pipeline.cell_times import CellTimes
from parallel.pipeline.schedules import ScheduleName, build_schedule, count_stages
from parallel.pipeline.simulator import simulate

PAIRED = (ScheduleName.dualpipev, ScheduleName.dualpipe)
"""Schedules with pairs of a forward and a backward."""


@dataclass(frozen=True)
class Entry:
    """One schedule in time. Parts are of the makespan, and the mean over ranks."""

    name: ScheduleName
    paired: bool
    makespan: float
    compute: float
    """Part that is the model's own compute."""
    exposed: float
    """Part in which a rank waits for its all-to-alls, which nothing hides."""
    all_to_all: float
    """All-to-alls as a part, hidden or not."""
    bubble: float
    """Part in which a rank has nothing to do."""
    activations: float
    """Most micro-batches alive at once on the worst rank, each by the part of the rank's share that it is in."""
    copies: int
    """Of the weights that a rank holds of its share."""

    @property
    def hidden(self) -> float:
        """Part of the all-to-alls that compute hides; 0 without any."""
        return max(0.0, 1 - self.exposed / self.all_to_all) if self.all_to_all else 0.0


@dataclass(frozen=True)
class Contest:
    """All of one number of ranks and micro-batches."""

    pp: int
    micro_batches: int
    entries: list[Entry]
    """The fastest first."""
    refused: list[str]
    """What schedules cannot do, a line each."""


def hold_contest(pp: int, micro_batches: int, times: CellTimes, stages_per_rank: int | None = None) -> Contest:
    """Time every schedule; `stages_per_rank` is of those that have a choice."""
    entries, refused = [], []
    for name in ScheduleName:
        try:
            stages = stages_per_rank if _has_choice(name) else None
            schedule = build_schedule(name, pp, micro_batches, stages)
        except ConfigError as error:
            refused.append(str(error))
            continue
        entries += [enter(schedule, name, times, paired) for paired in ((False, True) if name in PAIRED else (False,))]
    return Contest(pp, micro_batches, sorted(entries, key=lambda entry: entry.makespan), refused)


def enter(schedule: Schedule, name: ScheduleName, times: CellTimes, paired: bool) -> Entry:
    """Time one."""
    stages = schedule.n_stages // schedule.n_ranks
    stage = times.scaled(1 / stages)
    costs = stage.costs(paired)
    simulation = simulate(schedule, costs)
    whole = simulation.makespan
    exposed = [sum(stage.exposed(costs, span.cell) for span in row) for row in simulation.spans]
    return Entry(
        name,
        paired,
        whole,
        schedule.n_micro_batches * times.compute / whole,
        sum(exposed) / len(exposed) / whole,
        schedule.n_micro_batches * 2 * times.all_to_all / whole,
        simulation.bubble,
        max(simulation.peak_in_flight) / stages,
        schedule.n_chains,
    )


def _has_choice(name: ScheduleName) -> bool:
    """Whether a rank may have more or fewer stages of it."""
    try:
        return count_stages(name, 3) == 3
    except ConfigError:
        return False
