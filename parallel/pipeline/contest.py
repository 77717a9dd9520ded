"""Every schedule that can run on so many ranks, on paper, with and without pairs that hide the all-to-all."""

from dataclasses import dataclass, replace

from models.config import ConfigError
from parallel.pipeline.action import Schedule
from parallel.pipeline.cell_times import CellTimes
from parallel.pipeline.schedules import PAIRED, ScheduleName, build_schedule, count_stages
from parallel.pipeline.simulator import simulate


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
    entries: list[Entry] = []
    refused: list[str] = []
    for name in ScheduleName:
        stages = stages_per_rank if _has_choice(name) else None
        try:
            for paired in (False, True) if name in PAIRED else (False,):
                schedule = build_schedule(name, pp, micro_batches, stages, paired)
                entries.append(enter(schedule, name, times, paired))
        except ConfigError as error:
            refused.append(str(error))
    return Contest(pp, micro_batches, sorted(entries, key=lambda entry: entry.makespan), refused)


def enter(
    schedule: Schedule, name: ScheduleName, times: CellTimes, paired: bool, shares: tuple[float, ...] = ()
) -> Entry:
    """Time one. `shares`: how many times as large each stage is as the mean one; empty: all are equal."""
    stages = schedule.n_stages // schedule.n_ranks
    stage = times.scaled(1 / stages)
    costs = replace(stage.costs(paired), shares=shares)
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
