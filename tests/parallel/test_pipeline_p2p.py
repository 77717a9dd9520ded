"""overlap.pipeline_p2p: messages between stages behind the compute of other micro-batches, or waited for at once."""

from dataclasses import replace

import numpy as np
import pytest
from harness.layout_run import MODEL, Layout, run_layout
from harness.recorded_step import record_step, travelled
from harness.strategies import strategy
from harness.worker_pool import WorkerPool

from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig
from parallel.pipeline.schedules import ScheduleName

DEEP = replace(MODEL, n_layers=9, moe=replace(MODEL.moe, n_routed=8))
AT_ONCE = OverlapConfig(pipeline_p2p=False, reshard_after_forward=False)
EVERY_RUN = (ScheduleName.dualpipe,)


def layout_of(schedule: ScheduleName, overlap: OverlapConfig, name: str = "pp") -> Layout:
    return Layout(replace(strategy(name), schedule=schedule), overlap, model=DEEP, global_batch_size=16, steps=2)


def test_messages_are_behind_compute_or_waited_for_at_once(pool: WorkerPool) -> None:
    hidden, exposed = (
        pool.run(2, record_step, layout_of(ScheduleName.one_f_one_b, OverlapConfig(pipeline_p2p=value)))
        for value in (True, False)
    )
    behind = set()
    for rank in range(2):
        messages, at_once = travelled(hidden[rank], CommKind.pp), travelled(exposed[rank], CommKind.pp)
        assert [message.issue for message in at_once] == [message.issue for message in messages]
        assert not any(message.behind for message in at_once)
        behind |= {(rank, message.issue.operation) for message in messages if message.behind}
    # What rank 1 hands back, rank 0 takes at once: of these two ranks only the second has something to do meanwhile.
    assert behind == {(0, "send"), (1, "send"), (1, "receive")}


def assert_equal(pool: WorkerPool, world_size: int, on: Layout, off: Layout) -> None:
    """Same numbers to the bit: not one sum is made in another order."""
    for a, b in zip(pool.run(world_size, run_layout, on), pool.run(world_size, run_layout, off), strict=True):
        assert (a.losses, a.evals, a.grad_norms) == (b.losses, b.evals, b.grad_norms)
        assert a.weights.keys() == b.weights.keys()
        for name, piece in a.weights.items():
            np.testing.assert_array_equal(piece.array, b.weights[name].array, err_msg=name)
        assert a.traffic.rows() == b.traffic.rows()


SCHEDULES = [
    pytest.param(name, marks=[] if name in EVERY_RUN else [pytest.mark.soak], id=name.value) for name in ScheduleName
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_schedule_deadlocks_and_none_changes_a_number(schedule: ScheduleName, pool: WorkerPool) -> None:
    on = layout_of(schedule, replace(AT_ONCE, pipeline_p2p=True))
    assert_equal(pool, 2, on, layout_of(schedule, AT_ONCE))


@pytest.mark.soak
@pytest.mark.parametrize("schedule", ScheduleName, ids=lambda schedule: schedule.value)
def test_four_ranks_deep(schedule: ScheduleName, pool: WorkerPool) -> None:
    """Neighbours at both sides."""
    layout = layout_of(schedule, AT_ONCE)
    layout = replace(layout, strategy=replace(layout.strategy, pp=4))
    assert_equal(pool, 4, replace(layout, overlap=replace(AT_ONCE, pipeline_p2p=True)), layout)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["pp_fsdp", "pp_tp"])
@pytest.mark.parametrize("schedule", [ScheduleName.one_f_one_b, ScheduleName.dualpipev])
def test_beside_other_dimensions(name: str, schedule: ScheduleName, pool: WorkerPool) -> None:
    on = layout_of(schedule, replace(AT_ONCE, pipeline_p2p=True), name)
    assert_equal(pool, 4, on, layout_of(schedule, AT_ONCE, name))
