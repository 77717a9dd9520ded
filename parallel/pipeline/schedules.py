"""The pipeline schedules by name, and the rules of what each of them takes.

    gpipe                    all forwards, then all backwards (Huang et al. 2019)
    1f1b                     one forward, one backward in turn (PipeDream-flush, Narayanan et al. 2021)
    interleaved_1f1b         several stages a rank, round and round (Megatron-LM, Narayanan et al. 2021)
    interleaved_zero_bubble  weight gradients put off into the bubble (ZB1P, Qi et al. 2023); one stage a rank is ZB-H1
    zbv                      two stages a rank in a V, all backwards split (Qi et al. 2024)
    dualpipev                two stages a rank in a V, a forward beside a backward (DeepSeek's DualPipe, cut in half)
    dualpipe                 two copies of the model run against each other (DeepSeek-V3, arXiv 2412.19437, 3.2.1)

torch generates the four in the middle; one process is 1f1b with one rank: plain accumulation.
"""

from enum import Enum
from functools import cache

from models.config import ConfigError
from parallel.pipeline.action import Action, Cell, Op, Pair, Schedule
from parallel.pipeline.dualpipe import dualpipe_rows
from parallel.pipeline.torch_schedules import torch_rows


class ScheduleName(Enum):
    gpipe = "gpipe"
    one_f_one_b = "1f1b"
    interleaved_1f1b = "interleaved_1f1b"
    interleaved_zero_bubble = "interleaved_zero_bubble"
    zbv = "zbv"
    dualpipev = "dualpipev"
    dualpipe = "dualpipe"


ONE_STAGE = (ScheduleName.gpipe, ScheduleName.one_f_one_b, ScheduleName.dualpipe)
"""Schedules that give each rank one stage (of each chain)."""
PAIRED = (
    ScheduleName.one_f_one_b,
    ScheduleName.interleaved_1f1b,
    ScheduleName.dualpipev,
    ScheduleName.dualpipe,
)
"""Schedules in which a forward can be joined with a backward."""
TWO_STAGES = (ScheduleName.zbv, ScheduleName.dualpipev)
"""Schedules that give each rank two, in a V: r and 2·ranks - 1 - r."""


def count_stages(name: ScheduleName, stages_per_rank: int | None) -> int:
    """Stages of a chain on each rank.

    Raises:
        ConfigError: if the schedule has another number of them.
    """
    fixed = 1 if name in ONE_STAGE else 2 if name in TWO_STAGES else None
    if fixed is not None and stages_per_rank not in (None, fixed):
        raise ConfigError(
            f"strategy.stages_per_rank={stages_per_rank}: strategy.schedule={name.value} has {fixed}; set it to null"
        )
    least = 1 if name is ScheduleName.interleaved_zero_bubble else 2
    if fixed is None and stages_per_rank is not None and stages_per_rank < least:
        raise ConfigError(
            f"strategy.stages_per_rank={stages_per_rank}: strategy.schedule={name.value} takes {least} or more; "
            "set it to null for 2"
        )
    return fixed or stages_per_rank or 2


def check_schedule(name: ScheduleName, n_ranks: int, n_micro_batches: int, stages_per_rank: int | None) -> None:
    """Refuse what the schedule cannot do.

    Raises:
        ConfigError: naming the number to change.
    """
    if n_ranks < 1:
        raise ConfigError(f"strategy.pp={n_ranks}: set it to at least 1")
    if n_micro_batches < 1:
        raise ConfigError(f"{n_micro_batches} micro-batches: a step has at least 1; set train.micro_batch_size lower")
    count_stages(name, stages_per_rank)
    if n_ranks == 1:
        return
    said = f"strategy.schedule={name.value} on strategy.pp={n_ranks} ranks"
    instead = f"and not {n_micro_batches}: set train.micro_batch_size (smaller gives more) or another schedule"
    if name is ScheduleName.dualpipe and n_ranks % 2:
        raise ConfigError(f"{said}: it pairs ranks; set strategy.pp to an even number")
    if name is ScheduleName.dualpipe and (n_micro_batches % 2 or n_micro_batches < 2 * n_ranks):
        raise ConfigError(f"{said} takes an even number of micro-batches, at least {2 * n_ranks}, {instead}")
    if name is ScheduleName.dualpipev and n_micro_batches < 2 * n_ranks:
        raise ConfigError(f"{said} takes at least {2 * n_ranks} micro-batches, {instead}")
    if name in (ScheduleName.interleaved_1f1b, ScheduleName.interleaved_zero_bubble):
        # They go round the ranks in rounds of equal length: what torch asks for.
        rounds = max(1, n_micro_batches // n_ranks)
        if n_micro_batches % rounds:
            raise ConfigError(f"{said} takes multiples of {n_ranks} micro-batches, {instead}")


@cache
def build_schedule(
    name: ScheduleName, n_ranks: int, n_micro_batches: int, stages_per_rank: int | None = None, paired: bool = False
) -> Schedule:
    """The table of a schedule; of one rank, plain accumulation whatever the name. `paired`: 1f1b and interleaved_1f1b
    join each forward that comes after a backward with it, as DualPipe and DualPipeV do by themselves.

    Raises:
        ConfigError: if it cannot be.
    """
    check_schedule(name, n_ranks, n_micro_batches, stages_per_rank)
    if n_ranks == 1:
        name, stages_per_rank = ScheduleName.one_f_one_b, None
    n_stages = n_ranks * count_stages(name, stages_per_rank)
    loop = (tuple(stage % n_ranks for stage in range(n_stages)),)
    match name:
        case ScheduleName.gpipe | ScheduleName.one_f_one_b:
            rows = tuple(
                _one_stage_row(rank, n_ranks, n_micro_batches, name is ScheduleName.gpipe, paired)
                for rank in range(n_ranks)
            )
            return Schedule(name.value, n_micro_batches, loop, tuple(map(_paired, rows)) if paired else rows)
        case ScheduleName.dualpipe:
            both_ways = (tuple(range(n_ranks)), tuple(reversed(range(n_ranks))))
            return Schedule(name.value, n_micro_batches, both_ways, dualpipe_rows(n_ranks, n_micro_batches))
        case ScheduleName.zbv | ScheduleName.dualpipev:
            loop = (tuple(min(stage, n_stages - 1 - stage) for stage in range(n_stages)),)
    rows = torch_rows(name.value, n_ranks, n_stages, n_micro_batches)
    if paired and name is ScheduleName.interleaved_1f1b:
        rows = tuple(map(_paired, rows))
    return Schedule(name.value, n_micro_batches, loop, rows)


def forward_schedule(rank_of_stage: tuple[int, ...], n_micro_batches: int) -> Schedule:
    """Forward alone, through one chain: evaluation. A rank takes all micro-batches through its first stage, then all
    through the next: in a V, one at a time would have to come all the way back before the next one starts."""
    rows: list[list[Cell]] = [[] for _ in range(max(rank_of_stage) + 1)]
    for stage, rank in enumerate(rank_of_stage):
        rows[rank] += [Action(Op.forward, 0, stage, micro_batch) for micro_batch in range(n_micro_batches)]
    return Schedule("forward", n_micro_batches, (rank_of_stage,), tuple(tuple(row) for row in rows))


def _one_stage_row(rank: int, n_ranks: int, n_micro_batches: int, all_forwards: bool, paired: bool) -> tuple[Cell, ...]:
    """1F1B: as many forwards ahead as there are stages behind this one; twice that many if forwards and backwards go in
    pairs, for then a micro-batch moves on by one stage a pair, down and up again. GPipe: all of them ahead."""
    behind = (n_ranks - 1 - rank) * (2 if paired else 1)
    ahead = n_micro_batches if all_forwards else min(n_micro_batches, behind)
    row = [Action(Op.forward, 0, rank, m) for m in range(ahead)]
    for m in range(n_micro_batches):
        if m + ahead < n_micro_batches:
            row.append(Action(Op.forward, 0, rank, m + ahead))
        row.append(Action(Op.backward, 0, rank, m))
    return tuple(row)


def _paired(row: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """A backward and the forward after it in one cell, each to hide the other's communication: one micro-batch more is
    alive, for its forward no longer waits until the backward has made room (Megatron-LM warms up by one more).

    one rank   F0 B0 F1 B1 F2 B2   →   F0 F1&B0 F2&B1 B2
    """
    cells: list[Cell] = []
    joined = (Op.backward, Op.forward)
    for cell in row:
        before = cells[-1] if cells else None
        if isinstance(before, Action) and isinstance(cell, Action) and (before.op, cell.op) == joined:
            cells[-1] = Pair(cell, before)
        else:
            cells.append(cell)
    return tuple(cells)
