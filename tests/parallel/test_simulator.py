"""The simulator on tables made by hand: what it measures, and what it finds wrong with them."""

import pytest

from parallel.pipeline.action import Action, Cell, Op, Pair, Schedule, StageKey
from parallel.pipeline.schedules import ScheduleName, build_schedule
from parallel.pipeline.simulator import Costs, ScheduleError, Span, simulate


def cells(stage: int, words: str) -> tuple[Cell, ...]:
    """`F0 B0 F2&B1` as the cells of a stage of the one chain there is."""
    row: list[Cell] = []
    for word in words.split():
        actions = [Action(Op(part[0]), 0, stage, int(part[1:])) for part in word.split("&")]
        row.append(actions[0] if len(actions) == 1 else Pair(*actions))
    return tuple(row)


def table(n_micro_batches: int, *rows: str) -> Schedule:
    """One stage a rank, in a chain."""
    ranks = tuple(range(len(rows)))
    made = tuple(cells(rank, words) for rank, words in enumerate(rows))
    return Schedule("by hand", n_micro_batches, (ranks,), made)


def test_cells_start_when_their_rank_is_free_and_what_they_need_is_there() -> None:
    simulation = simulate(table(2, "F0 F1 B0 B1", "F0 I0 F1 B1 W0"), Costs(1, 2, 3, send=0.5))
    first, second = ([(span.start, span.end) for span in row] for row in simulation.spans)
    assert second == [(1.5, 2.5), (2.5, 4.5), (4.5, 5.5), (5.5, 10.5), (10.5, 13.5)]
    assert first == [(0, 1), (1, 2), (5, 10), (11, 16)]
    assert simulation.makespan == 16
    assert simulation.busy == (12, 12)
    assert simulation.bubble_of_rank == pytest.approx((0.25, 0.25))
    assert simulation.bubble == pytest.approx(0.25)
    assert simulation.peak_in_flight == (2, 2)


def test_a_pair_takes_as_long_as_its_parts_or_as_it_is_said_to() -> None:
    schedule = table(2, "F0 F1&B0 B1")
    assert simulate(schedule, Costs(1, 2, 3)).makespan == 1 + 6 + 5
    paired = simulate(schedule, Costs(1, 2, 3, pair=5.5))
    assert paired.spans[0][1] == Span(schedule.rows[0][1], 1, 6.5)
    assert paired.peak_in_flight == (2,)


def test_activations_live_until_the_weights_gradients_are_made() -> None:
    assert simulate(table(3, "F0 B0 F1 B1 F2 B2"), Costs()).peak_in_flight == (1,)
    assert simulate(table(3, "F0 I0 F1 I1 W0 F2 I2 W1 W2"), Costs()).peak_in_flight == (2,)
    both = Schedule("V", 1, ((0, 1, 1, 0),), (_of_stages((0, 3)), _of_stages((1, 2))))
    simulation = simulate(both, Costs())
    assert simulation.peak_in_flight == (2, 2)
    assert simulation.peak_of_stage == {StageKey(0, stage): 1 for stage in range(4)}
    one = simulate(build_schedule(ScheduleName.one_f_one_b, 4, 8), Costs())
    assert one.peak_of_stage == {StageKey(0, stage): 4 - stage for stage in range(4)}


def _of_stages(stages: tuple[int, ...]) -> tuple[Cell, ...]:
    """A micro-batch through the stages of a rank and back."""
    forward = [Action(Op.forward, 0, stage, 0) for stage in stages]
    return (*forward, *(action._replace(op=Op.backward) for action in reversed(forward)))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("F0 B0 F1", "F0 B0 F1 B1"), "I1 in stage 0 of chain 0 comes 0 times, not once"),
        (("F0 F1 B0 B1", "F0 B0 B1"), "F1 in stage 1 of chain 0 comes 0 times, not once"),
        (("F0 F1 B0 B1", "F0 B0 F1 I1"), "W1 in stage 1 of chain 0 comes 0 times, not once"),
        (("F0 F1 B0 B1", "F0 B0 F1 B1 W1"), "W1 in stage 1 of chain 0 comes 2 times, not once"),
        (("F0 F1 F1 B0 B1", "F0 B0 F1 B1"), "F1 in stage 0 of chain 0 comes 2 times, not once"),
        (("F0 F1 F2 B0 B1 B2", "F0 B0 F1 B1"), "F2 in stage 0 of chain 0: no such micro-batch goes through that chain"),
        (
            ("B0 F0 F1 B1", "F0 B0 F1 B1"),
            "deadlock: rank 0 waits at B0 in stage 0 of chain 0 for F0 in stage 0 of chain 0, B0 in stage 1 of chain 0"
            "; rank 1 waits at F0 in stage 1 of chain 0 for F0 in stage 0 of chain 0",
        ),
        (
            ("F0 F1 B0 B1", "F0 W0 I0 F1 B1"),
            "deadlock: rank 0 waits at B0 in stage 0 of chain 0 for I0 in stage 1 of chain 0; "
            "rank 1 waits at W0 in stage 1 of chain 0 for I0 in stage 1 of chain 0",
        ),
        (
            ("F0 B0 F1 B1", "F0 F1 B0 B1"),  # each waits for what the other does later
            "deadlock: rank 0 waits at B0 in stage 0 of chain 0 for B0 in stage 1 of chain 0; "
            "rank 1 waits at F1 in stage 1 of chain 0 for F1 in stage 0 of chain 0",
        ),
    ],
)
def test_a_table_that_no_ranks_could_run_is_refused(rows: tuple[str, str], said: str) -> None:
    with pytest.raises(ScheduleError) as refusal:
        simulate(table(2, *rows), Costs())
    assert str(refusal.value) == said


def test_a_pair_of_one_micro_batch_waits_for_itself() -> None:
    with pytest.raises(ScheduleError, match=r"^deadlock: rank 0 waits at F0 .* & B0 in stage 0 .* for F0 in stage 0"):
        simulate(table(1, "F0&B0"), Costs())


def test_a_stage_on_another_rank_is_refused() -> None:
    rows = cells(0, "F0 B0"), cells(0, "F0 B0")
    with pytest.raises(ScheduleError, match=r"^rank 1 has no stage 0 of chain 0$"):
        simulate(Schedule("by hand", 1, ((0, 1),), rows), Costs())
