"""Which steps are traced."""

from pathlib import Path

from parallel.settling import settling_steps
from train.metrics.config import MeasureConfig
from train.trace.plan import TRACE_FILE, Role, TracePlan


def roles(plan: TracePlan, steps: range) -> dict[str, list[int]]:
    return {role.value: [s for s in steps if plan.role(s) is role] for role in (Role.warm_up, Role.traced)}


def test_every_so_many_steps_until_the_limit(tmp_path: Path) -> None:
    plan = TracePlan(MeasureConfig(trace_every=10, trace_limit=2), range(1, 36), tmp_path)
    assert roles(plan, range(1, 36)) == {"warm-up": [9, 19, 29], "traced": [10, 20, 30]}
    plan.traced(10)
    plan.traced(20)
    assert roles(plan, range(1, 36)) == {"warm-up": [], "traced": []}


def test_no_step_is_traced_unasked(tmp_path: Path) -> None:
    assert roles(TracePlan(MeasureConfig(), range(1, 101), tmp_path), range(1, 101)) == {"warm-up": [], "traced": []}


def test_a_file_asks_and_is_taken_away(tmp_path: Path) -> None:
    plans = [TracePlan(MeasureConfig(), range(1, 21), tmp_path) for _ in range(2)]
    assert not plans[0].wants([1.0], 0)
    (tmp_path / TRACE_FILE).touch()
    assert [plan.wants([1.0], rank) for rank, plan in enumerate(plans)] == [True, False]  # rank 0 looks
    for rank, plan in enumerate(plans):
        plan.ask(8, rank)
        assert roles(plan, range(1, 21)) == {"warm-up": [9], "traced": [10]}
        plan.ask(9, rank)  # one at a time
        assert roles(plan, range(1, 21)) == {"warm-up": [9], "traced": [10]}
        plan.traced(10)
    assert not (tmp_path / TRACE_FILE).exists()
    (tmp_path / TRACE_FILE).touch()
    for rank, plan in enumerate(plans):
        plan.ask(19, rank)  # there is no step 21
        assert roles(plan, range(1, 21)) == {"warm-up": [], "traced": []}
    assert (tmp_path / TRACE_FILE).exists(), "not granted"


def test_a_trace_that_is_under_way_does_for_who_asks(tmp_path: Path) -> None:
    plan = TracePlan(MeasureConfig(trace_every=10), range(1, 41), tmp_path)
    (tmp_path / TRACE_FILE).touch()
    plan.ask(9, 0)  # during the warm-up of step 10
    assert not (tmp_path / TRACE_FILE).exists()
    assert roles(plan, range(1, 21)) == {"warm-up": [9, 19], "traced": [10, 20]}
    plan.traced(10)
    plan.ask(13, 0)
    assert roles(plan, range(11, 21)) == {"warm-up": [14, 19], "traced": [15, 20]}


def test_a_file_is_heard_beyond_the_limit(tmp_path: Path) -> None:
    plan = TracePlan(MeasureConfig(trace_every=10, trace_limit=0, trace_slow=True), range(1, 41), tmp_path)
    assert roles(plan, range(1, 41)) == {"warm-up": [], "traced": []}
    assert not plan.wants([1.0] * 12 + [99.0, 99.0], 0)
    (tmp_path / TRACE_FILE).touch()
    assert plan.wants([1.0], 0)
    plan.ask(5, 0)
    assert roles(plan, range(1, 41)) == {"warm-up": [6], "traced": [7]}


def test_the_first_step_of_an_attempt_is_plain(tmp_path: Path) -> None:
    """It compiles; and what is traced has no speed, so a job of nothing else would have none."""
    plan = TracePlan(MeasureConfig(trace_every=4), range(7, 13), tmp_path)
    assert roles(plan, range(7, 13)) == {"warm-up": [11], "traced": [12]}


def test_the_step_that_is_written_down_is_plain(tmp_path: Path) -> None:
    """Nor is its warm-up asked for: the request waits."""
    settling = settling_steps(cuda_graph=True)
    assert (settling, settling_steps(cuda_graph=False)) == (3, 1)
    plan = TracePlan(MeasureConfig(trace_every=2), range(7, 15), tmp_path, settling)
    assert roles(plan, range(7, 15)) == {"warm-up": [11, 13], "traced": [12, 14]}
    plan = TracePlan(MeasureConfig(), range(7, 15), tmp_path, settling)
    (tmp_path / TRACE_FILE).touch()
    for step in (7, 8):
        plan.ask(step, 0)
        assert (tmp_path / TRACE_FILE).exists()
    plan.ask(9, 0)
    assert not (tmp_path / TRACE_FILE).exists()
    assert roles(plan, range(7, 15)) == {"warm-up": [10], "traced": [11]}


def test_a_step_that_took_three_deviations_more_than_the_median_asks(tmp_path: Path) -> None:
    plan = TracePlan(MeasureConfig(trace_slow=True), range(1, 101), tmp_path)
    assert not plan.wants([50.0], 1)  # nothing to compare with
    assert not plan.wants([9.0, 10.0, 11.0] * 4, 1)
    # The median of all is 10, and the median deviation 1.
    assert not plan.wants([13.0], 1)
    assert plan.wants([10.0, 13.1], 1)
    assert plan.usual_step_s() == 10.0
    assert not TracePlan(MeasureConfig(), range(1, 101), tmp_path).wants([1.0] * 12 + [99.0], 1)
