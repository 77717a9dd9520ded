"""overlap.optimizer: each bucket's weights are updated behind the rest of backward, to the same numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from harness.layout_run import (
    BF16,
    DDP,
    FSDP,
    HSDP,
    MODEL,
    ZERO1,
    Layout,
    batches_of,
    open_layout,
    run_layout,
    this_world,
)
from harness.recorded_step import PRODUCT, UPDATE, Issue, Wait, record_step, travelled
from harness.strategies import strategy
from harness.worker_pool import WorkerPool

from conf.compose import compose
from conf.schema import validate
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig
from parallel.pipeline.schedules import ScheduleName
from train.config import OptimConfig
from train.faults.config import Fault, FaultConfig
from train.faults.injector import Injector
from train.step import OptimizerStep

AFTER = OverlapConfig(bucket_mib=0.01)
BEHIND = replace(AFTER, optimizer=True)
SIDE_BY_SIDE = OverlapConfig(forward_backward=True)
DEEP = replace(MODEL, n_layers=9, moe=replace(MODEL.moe, n_routed=8))


@pytest.mark.parametrize(
    ("chosen", "operation"), [(DDP, "all_reduce"), (ZERO1, "reduce_scatter")], ids=["ddp", "zero1"]
)
def test_updates_come_before_backward_is_over(chosen, operation: str, pool: WorkerPool) -> None:
    layout = Layout(chosen, BEHIND, micro_batch_size=2, clip_norm=None)
    for events in pool.run(2, record_step, layout):
        reductions = travelled(events, CommKind.dp, operation)
        assert len(reductions) > 4
        assert events.count(UPDATE) == len(reductions)
        # Not behind each: two buckets of small parameters may come from one product.
        assert 2 * sum(PRODUCT in reduction.behind for reduction in reductions) > len(reductions)
        updates = [place for place, event in enumerate(events) if event == UPDATE]
        over = len(events) - events[::-1].index(PRODUCT)
        assert sum(place < over for place in updates) >= len(reductions) - 3
        for place, reduction in zip(updates, reductions, strict=True):
            assert events.index(Wait(reduction.issue.number)) < place
        gathers = travelled(events, CommKind.dp, "all_gather")
        assert len(gathers) == (len(reductions) if chosen is ZERO1 else 0)
        assert 2 * sum(PRODUCT in gather.behind for gather in gathers) >= len(gathers)
    off = pool.run(2, record_step, replace(layout, overlap=AFTER))
    for events in off:
        assert events.count(UPDATE) == 1
        assert PRODUCT not in events[events.index(UPDATE) :]


def test_fsdp_updates_a_part_once_it_is_reduced(pool: WorkerPool) -> None:
    """On gloo its reductions are synchronous, so all there is to see is that products follow updates."""
    layout = Layout(FSDP, BEHIND, micro_batch_size=2, clip_norm=None)
    n_parts = 2 * layout.model.n_layers + 2
    for events in pool.run(2, record_step, layout):
        updates = [place for place, event in enumerate(events) if event == UPDATE]
        over = len(events) - events[::-1].index(PRODUCT)
        assert len(updates) == n_parts
        assert sum(place < over for place in updates) >= n_parts - 2
        # None of them before the last micro-batch's backward: of two micro-batches, in the second half.
        products = [place for place, event in enumerate(events) if event == PRODUCT]
        assert updates[0] > products[len(products) // 2]


@pytest.mark.soak
def test_collectives_are_begun_in_one_order(pool: WorkerPool) -> None:
    layout = Layout(ZERO1, BEHIND, clip_norm=None)
    orders = [
        [(event.kind, event.operation) for event in events if isinstance(event, Issue)]
        for events in pool.run(4, record_step, layout)
    ]
    assert all(order == orders[0] for order in orders)


EIGHT = replace(MODEL, moe=replace(MODEL.moe, n_routed=8))
PIPELINE = replace(strategy("pp"), reduction=DDP.reduction, dp_replicate=2)
CASES = {
    "ddp_accumulation": (2, Layout(DDP, micro_batch_size=1)),
    "zero1_accumulation": (2, Layout(ZERO1, micro_batch_size=2)),
    "fsdp_accumulation": (2, Layout(FSDP, micro_batch_size=2)),
    "pp": (4, Layout(PIPELINE, model=EIGHT, global_batch_size=16)),
}
LONG = {
    "ddp": (2, Layout(DDP)),
    "zero1": (4, Layout(ZERO1)),
    "zero1_bf16": (2, Layout(ZERO1, precision=BF16)),
    "ddp_recomputed": (2, Layout(strategy("ddp", "recompute=selective"), micro_batch_size=2)),
    "fsdp": (4, Layout(FSDP)),
    "fsdp_1": (1, Layout(FSDP, micro_batch_size=4)),
    "fsdp_bf16": (2, Layout(FSDP, precision=BF16, micro_batch_size=2)),
    "hsdp": (4, Layout(HSDP, micro_batch_size=1)),
    "fsdp_ep_recomputed": (4, Layout(strategy("fsdp_ep", "recompute=full"), model=EIGHT, micro_batch_size=1)),
    "fsdp_tp": (4, Layout(strategy("fsdp_tp"), model=EIGHT, micro_batch_size=2)),  # norms are summed over tp too
    "pp_fsdp": (4, Layout(strategy("pp_fsdp"), model=DEEP, global_batch_size=16)),
    "pp_fsdp_interleaved": (
        4,
        Layout(replace(strategy("pp_fsdp"), schedule=ScheduleName.interleaved_1f1b), model=DEEP, global_batch_size=16),
    ),
    "ep": (2, Layout(strategy("ep"), micro_batch_size=2)),  # routed experts are this rank's alone
    "tp_ep": (4, Layout(strategy("tp_ep"), model=EIGHT)),
    "ep_side_by_side": (2, Layout(strategy("ep"), SIDE_BY_SIDE, model=EIGHT, micro_batch_size=1)),
    "zero1_ep_side_by_side": (
        2,
        Layout(replace(strategy("ep"), reduction=ZERO1.reduction), SIDE_BY_SIDE, model=EIGHT, micro_batch_size=1),
    ),
    "zero1_ep_one_pass": (
        2,
        Layout(
            replace(strategy("ep"), reduction=ZERO1.reduction), micro_batch_size=2, optim=OptimConfig(one_pass=True)
        ),
    ),
    "pp_ep_dualpipev_side_by_side": (
        4,
        Layout(
            replace(strategy("pp_ep"), schedule=ScheduleName.dualpipev),
            SIDE_BY_SIDE,
            model=DEEP,
            global_batch_size=16,
        ),
    ),
    "pp_ep": (4, Layout(strategy("pp_ep"), model=DEEP, global_batch_size=16)),
    "pp_tp_zero1": (4, Layout(replace(strategy("pp_tp"), reduction=ZERO1.reduction), model=DEEP)),
    **{
        f"pp_{name.value}": (4, Layout(replace(PIPELINE, schedule=name), model=DEEP, global_batch_size=16))
        for name in ScheduleName
    },
    **{
        f"pp_zero1_{name.value}": (
            4,
            Layout(
                replace(PIPELINE, schedule=name, reduction=ZERO1.reduction), model=DEEP, global_batch_size=16, steps=2
            ),
        )
        for name in ScheduleName
    },
}


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.soak) for name in LONG)])
def test_numbers_are_the_same_to_the_bit(name: str, pool: WorkerPool) -> None:
    """Nothing is added up in another order. A rank that has no gradient of its own yet would show here too."""
    world_size, layout = (CASES | LONG)[name]
    layout = replace(layout, clip_norm=None)
    side_by_side = layout.overlap.forward_backward
    behind, after = (
        pool.run(world_size, run_layout, replace(layout, overlap=replace(overlap, forward_backward=side_by_side)))
        for overlap in (BEHIND, AFTER)
    )
    for a, b in zip(behind, after, strict=True):
        assert (a.losses, a.evals, a.grad_norms) == (b.losses, b.evals, b.grad_norms)
        assert a.weights.keys() == b.weights.keys()
        assert a.moments.keys() == b.moments.keys()
        for key, piece in (a.weights | a.moments | a.first_gradients).items():
            np.testing.assert_array_equal(piece.array, (b.weights | b.moments | b.first_gradients)[key].array, key)
        assert a.traffic.rows() == b.traffic.rows()


def run_with_a_bad_step(folder: Path) -> list[bool]:
    """Whether each of three steps is said to be one that should have moved nothing; the second is not finite."""
    world, comm = this_world(), Communicator()
    layout = Layout(DDP, BEHIND, clip_norm=None)
    engine = open_layout(layout, world, comm)
    injector = Injector([FaultConfig(Fault.non_finite, rank=1, step=2)], world.rank, 1, folder)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, layout.clip_norm, injector=injector)
    batches = batches_of(layout, engine.data)
    said = []
    for injector.step in range(1, 4):
        said.append(bool(step(next(batches), layout.rate).left_out))
    return said


def test_a_step_that_is_not_finite_is_reported(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(2, run_with_a_bad_step, tmp_path) == [[False, True, True]] * 2


def test_what_it_asks_for_is_accepted() -> None:
    words = ["overlap.optimizer=true", "optim.clip_norm=null", "recovery.non_finite=fail"]
    for name in ("ddp", "zero1", "fsdp"):
        validate(compose([f"strategy={name}", *words]).config, 2)
