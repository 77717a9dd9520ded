"""Which steps are traced."""

from pathlib import Path

from train.metrics.config import MeasureConfig
from train.trace.plan import TRACE_FILE, Role, TracePlan


def roles(plan: TracePlan, steps: range) -> dict[str, list[int]]:
    return {role.value: [s for s in steps if plan.role(s) is role] for role in (Role.warm_up, Role.traced)}


def test_every_so_many_steps_until_the_limit(tmp_path: Path) -> None:
    plan = TracePlan(MeasureConfig(trace_every=10, trace_limit=2), 35, tmp_path)
    assert roles(plan, range(1, 36)) == {"warm-up": [9, 19, 29], "traced": [10, 20, 30]}
    plan.traced(10)
    plan.traced(20)
    assert roles(plan, range(1, 36)) == {"warm-up": [], "traced": []}


def test_no_step_is_traced_unasked(tmp_path: Path) -> None:
    assert roles(TracePlan(MeasureConfig(), 100, tmp_path), range(1, 101)) == {"warm-up": [], "traced": []}


def test_a_file_asks_and_is_taken_away(tmp_path: Path) -> None:
    plans = [TracePlan(MeasureConfig(), 20, tmp_path) for _ in range(2)]
    assert not plans[0].wants([1.0], 0)
    (tmp_path / TRACE_FILE).touch()
    assert [plan.wants([1.0], rank) for rank, plan in enumerate(plans)] == [True, False]  # rank 0 looks
    for rank, plan in enumerate(plans):
        plan.ask(8, rank)
        assert roles(plan, range(1, 21)) == {"warm-up": [9], "traced": [10]}
        plan.ask(9, rank)  # one at a time
        assert roles(plan, range(1, 21)) == {"warm-up": [9], "traced": [10]}
        plan.traced(10)
        plan.ask(19, rank)  # there is no step 21
        assert roles(plan, range(1, 21)) == {"warm-up": [], "traced": []}
    assert not (tmp_path / TRACE_FILE).exists()


def test_a_step_that_took_three_deviations_more_than_the_median_asks(tmp_path: Path) -> None:
    plan = TracePlan(MeasureConfig(trace_slow=True), 100, tmp_path)
    assert not plan.wants([50.0], 1)  # nothing to compare with
    assert not plan.wants([9.0, 10.0, 11.0] * 4, 1)
    # The median of all is 10, and the median deviation 1.
    assert not plan.wants([13.0], 1)
    assert plan.wants([10.0, 13.1], 1)
    assert plan.usual_step_s() == 10.0
    assert not TracePlan(MeasureConfig(), 100, tmp_path).wants([1.0] * 12 + [99.0], 1)
