"""overlap.forward_backward: a forward and a backward take turns, and nothing else comes of it."""

import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from harness.layout_run import (
    DDP,
    DOCUMENTS,
    FSDP,
    HSDP,
    MODEL,
    MODEL_ALL_OPTIONS,
    ZERO1,
    Layout,
    batches_of,
    lay_out,
    merged,
    merged_gradients,
    run_layout,
    this_world,
)
from harness.predicted_traffic import predicted_traffic
from harness.worker_pool import WorkerPool
from torch import Tensor
from torch.distributed import ProcessGroup

from models.config import ConfigError
from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator, Pending
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, Recompute
from parallel.expert_parallel.build import PlacementName
from parallel.native_engine import NativeEngine
from parallel.overlap.order import ORDER, Part, alone, together
from parallel.overlap.passage import Passage
from parallel.pipeline.action import Op, Pair, Schedule, actions_of
from parallel.pipeline.loss_scale import LossScale
from parallel.pipeline.schedules import PAIRED, ScheduleName, build_schedule
from parallel.pipeline.simulator import Costs, simulate
from parallel.pipeline.transfers import with_transfers
from parallel.traffic.tally import Traffic
from train.config import OptimConfig
from train.optimizer import build_optimizer
from train.step import OptimizerStep

ON = OverlapConfig(forward_backward=True)
KEPT = replace(ON, reshard_after_forward=False)
SMALL_BUCKETS = replace(ON, bucket_mib=0.005)
EP = replace(DDP, ep=2)
FSDP_EP = replace(FSDP, ep=2)
DEEP = replace(MODEL, n_layers=6)
NO_SHARED = replace(MODEL, moe=replace(MODEL.moe, n_shared=0))
OPTIONS = {"model": MODEL_ALL_OPTIONS, "batching": DOCUMENTS}


def piped(base, schedule: ScheduleName, overlap: OverlapConfig = ON, **fields) -> tuple[int, Layout]:
    """Two stages or more on two times two ranks; DualPipe takes four micro-batches, the others may have more."""
    return 4, Layout(replace(base, pp=2, schedule=schedule), overlap, model=DEEP, global_batch_size=16, **fields)


MECHANISMS = {
    "accumulation": (2, Layout(replace(EP, placement=PlacementName.round_robin), ON, micro_batch_size=1, **OPTIONS)),
    "fsdp_recompute": (2, Layout(replace(FSDP_EP, recompute=Recompute.full), KEPT, micro_batch_size=2)),
    "zero1": (2, Layout(replace(ZERO1, ep=2), SMALL_BUCKETS, micro_batch_size=2, model=NO_SHARED)),
    "1f1b": piped(EP, ScheduleName.one_f_one_b),
    "dualpipev_fsdp": piped(FSDP_EP, ScheduleName.dualpipev, KEPT),
}
"""One of each thing that could go wrong."""
BASES = {
    "ddp": EP,
    "fsdp": FSDP_EP,
    "hsdp": replace(HSDP, ep=2),
    "zero1": replace(ZERO1, ep=2),
    "tp": replace(EP, tp=2),
    "tp_copied": replace(EP, tp=2, dp_replicate=2),
}
MATRIX = {
    f"{base}-{recompute.value}-{overlap.shared_experts}": (
        4,
        Layout(replace(BASES[base], recompute=recompute), overlap, micro_batch_size=1, **OPTIONS),
    )
    for base, recompute, overlap in product(BASES, Recompute, (KEPT, replace(KEPT, shared_experts=True)))
} | {f"{name.value}-{base}": piped(BASES[base], name, KEPT) for name, base in product(PAIRED, ("ddp", "fsdp", "zero1"))}


def compare(case: tuple[int, Layout], pool: WorkerPool) -> None:
    """With the knob and without."""
    world_size, layout = case
    layout = replace(layout, steps=2)
    off = replace(layout, overlap=replace(layout.overlap, forward_backward=False))
    outcomes, expected = (pool.run(world_size, run_layout, each) for each in (layout, off))
    for outcome, other in zip(outcomes, expected, strict=True):
        np.testing.assert_allclose(outcome.losses, other.losses, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.router_losses, other.router_losses, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.evals, other.evals, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.grad_norms, other.grad_norms, rtol=0, atol=1e-12)
        assert (outcome.chosen, outcome.dropped) == (other.chosen, other.dropped)
        assert outcome.calls == other.calls
        assert outcome.waits == other.waits
    for name, gradient in merged_gradients(expected).items():
        np.testing.assert_allclose(merged_gradients(outcomes)[name], gradient, rtol=0, atol=1e-13, err_msg=name)
    weights = merged(outcomes)
    for name, weight in merged(expected).items():
        np.testing.assert_allclose(weights[name], weight, rtol=0, atol=1e-12, err_msg=name)
    traffic = Traffic.total(outcome.traffic for outcome in outcomes)
    assert traffic.rows() == predicted_traffic(layout, world_size, int(outcomes[0].dropped[-1])).rows()


@pytest.mark.parametrize("name", MECHANISMS)
def test_equal_to_one_after_the_other(name: str, pool: WorkerPool) -> None:
    compare(MECHANISMS[name], pool)


@pytest.mark.soak
@pytest.mark.parametrize("name", MATRIX)
def test_equal_in_every_layout(name: str, pool: WorkerPool) -> None:
    compare(MATRIX[name], pool)


class Watched(Communicator):
    """Writes down, by the direction that is under way, when rows start to travel and when they are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, Phase, int | None]] = []
        self._rows: list[Pending] = []

    def computes(self, *_: object) -> None:
        """Something of the direction that is under way."""
        self.events.append(("compute", self.clock.phase, None))

    def start_all_to_all(
        self, tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup, kind: CommKind
    ) -> Pending:
        pending = super().start_all_to_all(tensor, sent, received, group, kind)
        if tensor.dim() > 1:  # counts are no rows
            self.events.append(("start", self.clock.phase, len(self._rows)))
            self._rows.append(pending)
        return pending

    def wait(self, pending: Pending) -> Tensor:
        for number, known in enumerate(self._rows):
            if known is pending:
                self.events.append(("wait", self.clock.phase, number))
        return super().wait(pending)


def events_of(layout: Layout) -> list[tuple[str, Phase, int | None]]:
    """Of one step on this rank."""
    world, comm = this_world(), Watched()
    parallel, train = lay_out(layout, world, comm)
    engine = NativeEngine(parallel, partial(build_optimizer, optim=OptimConfig()), comm, torch.float64)
    for stage in parallel.stages.values():
        for block in stage.layers.values():
            for part in (block.attention, block.experts):
                part.register_forward_hook(comm.computes)
            for weight in (block.attention.norm.weight, block.experts.routed and block.experts.routed.gate_up_E2FD):
                if weight is not None:
                    weight.register_post_accumulate_grad_hook(comm.computes)
    step = OptimizerStep(engine, comm, layout.batching, train.global_batch_size, clip_norm=1.0)
    step(next(batches_of(layout, engine.data)), rate=layout.rate)
    return comm.events


def hidden_and_exposed(events: list[tuple[str, Phase, int | None]]) -> Counter[tuple[Phase, bool]]:
    """Exchanges by the direction that they belong to, and whether the other one computed while they were under way."""
    found: Counter[tuple[Phase, bool]] = Counter()
    for at, (what, phase, number) in enumerate(events):
        if what != "start":
            continue
        arrived = events.index(("wait", phase, number))  # in the same direction
        between = events[at + 1 : arrived]
        found[phase, any(event == "compute" and other is not phase for event, other, _ in between)] += 1
    return found


def values_left(layout: Layout, in_segments: bool) -> tuple[int, int]:
    """Of the rows that travelled in a forward on this rank: how many there were, and how many are there still."""
    rows: list[weakref.ref[Tensor]] = []

    class Weighing(Communicator):
        def start_all_to_all(
            self, tensor: Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup, kind: CommKind
        ) -> Pending:
            pending = super().start_all_to_all(tensor, sent, received, group, kind)
            if tensor.dim() > 1:
                rows.extend(map(weakref.ref, (tensor, pending.output)))
            return pending

    world = this_world()
    parallel, _ = lay_out(layout, world, Weighing())
    batch = layout.batching(next(batches_of(layout, parallel.data))[0])
    passage = Passage(next(iter(parallel.stages.values())), batch.tokens_BS, batch, LossScale(1, 1))
    alone(passage.forward(in_segments))
    # Gloo's own thread lets go of an exchange a moment after it was waited for.
    until = time.monotonic() + 5
    while (left := sum(row() is not None for row in rows)) and time.monotonic() < until:
        time.sleep(0.01)
    counted = len(rows), left
    alone(passage.backward(None))
    return counted


@pytest.mark.parametrize("in_segments", [False, True])
def test_what_travelled_is_not_kept(in_segments: bool, pool: WorkerPool) -> None:
    """To two layers and back, sent and received: experts and sums save others."""
    assert pool.run(2, values_left, Layout(EP, ON), in_segments) == 2 * [(8, 0)]


F, B = Phase.compute_fwd, Phase.compute_bwd


def test_every_exchange_of_a_pair_is_behind_the_other_direction(pool: WorkerPool) -> None:
    """Four micro-batches through two MoE layers: one forward and one backward have nobody beside them."""
    layout = Layout(EP, ON, micro_batch_size=1)
    of_ranks = pool.run(2, events_of, layout)
    assert of_ranks[0] == of_ranks[1]
    assert hidden_and_exposed(of_ranks[0]) == {(F, False): 4, (F, True): 12, (B, False): 4, (B, True): 12}


def test_without_the_knob_none_is(pool: WorkerPool) -> None:
    events, _ = pool.run(2, events_of, Layout(EP, micro_batch_size=1))
    assert hidden_and_exposed(events) == {(F, False): 16, (B, False): 16}


def test_in_a_pipeline_those_of_pairs_are(pool: WorkerPool) -> None:
    """Four micro-batches; one dense layer and two with experts on each of two ranks, each as in one process."""
    case = replace(piped(EP, ScheduleName.one_f_one_b)[1], model=replace(MODEL, n_layers=5))
    schedule = build_schedule(ScheduleName.one_f_one_b, 2, 4, paired=True)
    for rank, events in enumerate(pool.run(4, events_of, case)):
        row = schedule.rows[rank // 2]
        n_layers = [2, 2][rank // 2]
        n_pairs = sum(isinstance(cell, Pair) for cell in row)
        assert n_pairs == [1, 3][rank // 2]
        found = hidden_and_exposed(events)
        for phase in (F, B):
            assert found[phase, True] == 2 * n_layers * n_pairs
            assert found[phase, False] == 2 * n_layers * (4 - n_pairs)


def walk(name: str, n_layers: int, seen: list[str]) -> Iterator[Part]:
    """What a walk does, told to `seen`."""
    for part in (*n_layers * (Part.attention, *_middle(name)), Part.attention):
        yield part
        seen.append(f"{name} {part.value}")


def _middle(name: str) -> tuple[Part, Part]:
    return (Part.dispatch, Part.experts) if name == "F" else (Part.experts, Part.dispatch)


ONE_LAYER = ["B attention", "F attention", "B experts", "F dispatch", "B dispatch", "F experts"]


def test_turns_are_in_the_order_that_is_drawn() -> None:
    seen: list[str] = []
    turns: list[bool] = []
    together(walk("F", 2, seen), walk("B", 2, seen), turns.append)
    assert seen == [*2 * ONE_LAYER, "B attention", "F attention"]
    assert turns == [name[0] == "F" for name in seen]
    assert [f"{'F' if turn.forward else 'B'} {turn.part.value}" for turn in ORDER] == ONE_LAYER


@pytest.mark.parametrize(("n_forward", "n_backward"), [(0, 0), (0, 3), (3, 0), (1, 4), (4, 1)])
def test_stages_of_different_depths_go_through(n_forward: int, n_backward: int) -> None:
    seen: list[str] = []
    together(walk("F", n_forward, seen), walk("B", n_backward, seen), lambda _: None)
    for name, n_layers in (("F", n_forward), ("B", n_backward)):
        by_itself: list[str] = []
        alone(walk(name, n_layers, by_itself))
        assert [event for event in seen if event[0] == name] == by_itself


def pairs_of(schedule: Schedule, rank: int) -> int:
    return sum(isinstance(cell, Pair) for cell in schedule.rows[rank])


def test_paired_schedules_run_at_every_size() -> None:
    n_schedules = 0
    for name, ranks, micro_batches in product(PAIRED, (1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 6, 8, 9, 12, 13, 16)):
        for stages_per_rank in (None, 3) if name is ScheduleName.interleaved_1f1b else (None,):
            try:
                schedule = build_schedule(name, ranks, micro_batches, stages_per_rank, paired=True)
            except ConfigError:
                continue
            simulation = simulate(schedule, Costs(send=0.3))
            with_transfers(schedule)
            plain = build_schedule(name, ranks, micro_batches, stages_per_rank)
            for rank, (row, before) in enumerate(zip(schedule.rows, plain.rows, strict=True)):
                for op in Op:
                    order, expected = (
                        [action for cell in cells for action in actions_of(cell) if action.op is op]
                        for cells in (row, before)
                    )
                    assert order == expected, (name, rank)
            if name is not ScheduleName.one_f_one_b or ranks == 1:
                alive = simulate(plain, Costs(send=0.3)).peak_in_flight
                assert all(a <= b + 1 for a, b in zip(simulation.peak_in_flight, alive, strict=True))
            n_schedules += 1
    assert n_schedules > 150


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 4), (2, 8), (4, 16), (8, 32)])
def test_pairs_take_no_longer_and_are_as_many_as_can_be(ranks: int, micro_batches: int) -> None:
    costs = Costs(1.0, 1.0, 1.0)
    for name in (ScheduleName.one_f_one_b, ScheduleName.interleaved_1f1b):
        paired, plain = (build_schedule(name, ranks, micro_batches, paired=on) for on in (True, False))
        assert simulate(paired, costs).makespan == simulate(plain, costs).makespan
        n_chunks = micro_batches * (2 if name is ScheduleName.interleaved_1f1b and ranks > 1 else 1)
        for rank in range(ranks):
            alone_ahead = n_chunks - pairs_of(paired, rank)
            if name is ScheduleName.one_f_one_b:
                assert alone_ahead == 2 * (ranks - 1 - rank) + 1
            else:
                assert alone_ahead < simulate(plain, costs).peak_in_flight[rank] + 1
