"""Every layout gives the losses, gradients and weights of the single-process run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from harness.engine_run import sampled
from harness.layout_run import (
    BF16,
    DDP,
    DOCUMENTS,
    FP32,
    FSDP,
    HSDP,
    MODEL,
    MODEL_ALL_OPTIONS,
    MODEL_MLA_SOFTMAX,
    SINGLE,
    ZERO1,
    Layout,
    Outcome,
    assert_routed_alike,
    merged,
    merged_gradients,
    run_layout,
)
from harness.predicted_traffic import predicted_traffic
from harness.worker_pool import WorkerFailure, WorkerPool

from models.config import Balance, RoutingChoice
from models.feed_forward import FeedForward
from models.transformer import Transformer
from parallel.comm_kind import CommKind
from parallel.config import OverlapConfig, Recompute, Reduction, StrategyConfig
from parallel.expert_parallel.build import DispatcherName, PlacementName, RowRoom
from parallel.mesh import Degrees
from parallel.pipeline.schedules import ScheduleName
from parallel.traffic.tally import Channel, Traffic
from train.batch import BatchMaker
from train.config import TrainConfig

NO_OVERLAP = OverlapConfig(grad_reduce=False)
MAX_OVERLAP = OverlapConfig(param_prefetch=2, reshard_after_forward=False)
ROWS_HIDDEN = OverlapConfig(shared_experts=True, dispatch_chunks=2)
TOKENS_HIDDEN = OverlapConfig(shared_experts=True)
SMALL_BUCKETS = OverlapConfig(bucket_mib=0.005)

DOCUMENTS_IN_LOSS = BatchMaker(DOCUMENTS.separator, split_attention=False)
LOSS_WEIGHTS = ("sequence_loss_weight", "batch_loss_weight", "z_loss_weight")


def ep(degree: int) -> StrategyConfig:
    return StrategyConfig("ep", Reduction.all_reduce, dp_replicate=-1, ep=degree)


def dealt(strategy: StrategyConfig, dispatcher: DispatcherName = DispatcherName.all_to_all) -> StrategyConfig:
    return replace(strategy, placement=PlacementName.round_robin, dispatcher=dispatcher)


def with_room(strategy: StrategyConfig) -> StrategyConfig:
    return replace(strategy, dispatcher=DispatcherName.all_gather, rows=RowRoom.static)


def pipeline(degree: int, schedule: ScheduleName = ScheduleName.one_f_one_b) -> StrategyConfig:
    return StrategyConfig("pp", pp=degree, schedule=schedule)


TP = StrategyConfig("tp", tp=-1)

CASES = {
    "ddp": (2, Layout(DDP)),
    "ddp_no_overlap": (2, Layout(DDP, NO_OVERLAP)),
    "ddp_buckets_accumulation": (2, Layout(DDP, SMALL_BUCKETS, micro_batch_size=2)),
    "ddp_4": (4, Layout(DDP, SMALL_BUCKETS)),
    "ddp_mla_softmax": (2, Layout(DDP, model=MODEL_MLA_SOFTMAX)),
    "fsdp": (2, Layout(FSDP)),
    "fsdp_accumulation": (2, Layout(FSDP, micro_batch_size=1)),
    "fsdp_no_overlap": (2, Layout(FSDP, NO_OVERLAP, micro_batch_size=2)),
    "fsdp_max_overlap": (2, Layout(FSDP, MAX_OVERLAP)),
    "fsdp_4_uneven_experts": (4, Layout(FSDP)),  # 6 experts over 4 ranks: 2, 2, 2, 0
    "fsdp_mla_softmax": (2, Layout(FSDP, model=MODEL_MLA_SOFTMAX)),
    "fsdp_1": (1, Layout(FSDP)),
    "hsdp": (4, Layout(HSDP)),
    "ddp_all_options": (2, Layout(DDP, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "ddp_4_all_options_accumulation": (
        4,
        Layout(DDP, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS, micro_batch_size=1),
    ),
    "fsdp_all_options": (2, Layout(FSDP, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "zero1": (2, Layout(ZERO1, SMALL_BUCKETS, micro_batch_size=2)),
    "zero1_4_all_options": (4, Layout(ZERO1, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "ep": (2, Layout(ep(2))),
    "ep_3_all_options": (
        3,
        Layout(ep(3), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS, global_batch_size=6, eval_sequences=6),
    ),
    "ep_2_of_4_all_gather": (4, Layout(replace(ep(2), dispatcher=DispatcherName.all_gather))),
    "ep_round_robin": (2, Layout(dealt(ep(2)), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "ep_round_robin_all_gather": (
        3,
        Layout(dealt(ep(3), DispatcherName.all_gather), global_batch_size=6, eval_sequences=6),
    ),
    "ep_with_room": (2, Layout(with_room(ep(2)))),
    "ep_with_room_all_options": (4, Layout(with_room(ep(2)), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "ep_with_room_rows_hidden": (
        2,
        Layout(with_room(ep(2)), TOKENS_HIDDEN, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS, micro_batch_size=1),
    ),
    "fsdp_ep_with_room_rows_hidden": (4, Layout(with_room(replace(FSDP, ep=2)), TOKENS_HIDDEN, micro_batch_size=1)),
    "ep_etp_with_room": (4, Layout(with_room(replace(ep(2), tp=2, etp=2)), TOKENS_HIDDEN)),
    "ddp_with_room": (
        2,
        Layout(replace(DDP, rows=RowRoom.static), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS),
    ),
    "fsdp_ep_round_robin": (4, Layout(dealt(replace(FSDP, ep=2)))),  # experts 0, 2, 4 and 1, 3, 5, two and one a rank
    "pp_ep_round_robin": (4, Layout(dealt(replace(ep(2), pp=2), DispatcherName.all_gather))),
    "fsdp_ep": (4, Layout(replace(FSDP, ep=2), micro_batch_size=1)),
    "hsdp_ep_all_options": (4, Layout(replace(HSDP, ep=2), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "ep_rows_hidden": (2, Layout(ep(2), ROWS_HIDDEN, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "fsdp_ep_rows_hidden": (4, Layout(replace(FSDP, ep=2), ROWS_HIDDEN, micro_batch_size=1)),
    "tp_etp_rows_hidden": (2, Layout(replace(TP, etp=2), OverlapConfig(shared_experts=True))),
    "tp": (2, Layout(TP)),
    "tp_4_one_head_each": (4, Layout(TP, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "tp_mla": (2, Layout(TP, model=MODEL_MLA_SOFTMAX, micro_batch_size=2)),
    "tp_ep": (4, Layout(replace(ep(4), tp=2), model=replace(MODEL, moe=replace(MODEL.moe, n_routed=8)))),
    "fsdp_tp": (4, Layout(replace(FSDP, tp=2), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "tp_etp": (2, Layout(replace(TP, etp=2), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "pp": (2, Layout(pipeline(2), eval_sequences=40)),  # more micro-batches than go through at once
    "pp_ep": (4, Layout(replace(ep(2), pp=2), model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)),
    "pp_fsdp": (4, Layout(replace(FSDP, pp=2))),
    "pp_tp": (4, Layout(replace(pipeline(2), tp=2), model=MODEL_MLA_SOFTMAX)),
    "pp_fsdp_ep": (8, Layout(replace(FSDP, pp=2, ep=2), global_batch_size=16)),
    "fsdp_documents_in_loss": (2, Layout(FSDP, model=MODEL_ALL_OPTIONS, batching=DOCUMENTS_IN_LOSS)),
}


BALANCED = replace(
    MODEL_ALL_OPTIONS,
    moe=replace(MODEL_ALL_OPTIONS.moe, routing=RoutingChoice.balanced, balance=Balance.none, capacity_factor=None),
)
_RECOMPUTED = replace(pipeline(2), tp=2, recompute=Recompute.full)
CASES |= {  # 6 experts, a sequence of 16 tokens: each has 5 or 6 of its pairs
    "balanced_tp_ep": (4, Layout(replace(ep(2), tp=2), model=BALANCED, batching=DOCUMENTS, micro_batch_size=2)),
    "balanced_pp_tp_recompute": (4, Layout(_RECOMPUTED, model=BALANCED, batching=DOCUMENTS)),
}


DEEP = replace(MODEL, n_layers=9)
for _name in ScheduleName:
    _pp = replace(pipeline(2, _name), reduction=Reduction.shard, dp_shard=-1)
    CASES[f"pp_{_name.value}"] = (2, Layout(pipeline(2, _name), model=DEEP))
    CASES[f"pp_fsdp_{_name.value}"] = (4, Layout(_pp, MAX_OVERLAP, model=DEEP))

LONG = {f"pp_fsdp_{name.value}" for name in ScheduleName if name is not ScheduleName.dualpipe}
LONG |= {"pp_1f1b", "ddp_4", "pp_tp", "pp_fsdp_ep", "pp_ep_round_robin", "fsdp_ep_with_room_rows_hidden"}
"""Left to `make soak`: each part of theirs is in another case."""


@pytest.fixture(scope="module")
def references() -> dict[Layout, Outcome]:
    return {}


def micro_batch_of_all(layout: Layout, world_size: int) -> int:
    """Sequences of a micro-batch over all data-parallel ranks."""
    degrees = Degrees.resolve(layout.strategy, world_size)
    train = TrainConfig(global_batch_size=layout.global_batch_size, micro_batch_size=layout.micro_batch_size)
    return train.micro_batch(degrees.dp, degrees.pp) * degrees.dp


def reference_of(layout: Layout, world_size: int, pool: WorkerPool, known: dict) -> Outcome:
    # The batch-level balancing loss is one of a micro-batch over all ranks: the same ones, then.
    micro_batch = micro_batch_of_all(layout, world_size) if layout.model.moe.batch_loss_weight else None
    single = Layout(
        precision=layout.precision,
        model=layout.model,
        batching=layout.batching,
        micro_batch_size=micro_batch,
        global_batch_size=layout.global_batch_size,
        eval_sequences=layout.eval_sequences,
    )
    key = repr(single)
    if key not in known:
        (known[key],) = pool.run(1, run_layout, single)
    return known[key]


@pytest.mark.parametrize("name", sampled(CASES.keys() - LONG, CASES))
def test_layout_equals_one_process_in_float64(name: str, pool: WorkerPool, references: dict) -> None:
    world_size, layout = CASES[name]
    reference = reference_of(layout, world_size, pool, references)
    outcomes = pool.run(world_size, run_layout, layout)
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.evals, reference.evals, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.router_losses, reference.router_losses, rtol=0, atol=1e-12)
        assert outcome.dropped == reference.dropped
        assert_routed_alike(outcome, reference, 1e-12)
        np.testing.assert_allclose(outcome.grad_norms, reference.grad_norms, rtol=0, atol=1e-12)
    gradients = merged_gradients(outcomes)
    assert gradients.keys() == reference.first_gradients.keys()
    for key, gradient in merged_gradients([reference]).items():
        np.testing.assert_allclose(gradients[key], gradient, rtol=0, atol=1e-13, err_msg=key)
    weights = merged(outcomes)
    assert weights.keys() == reference.weights.keys()
    for key, weight in merged([reference]).items():
        np.testing.assert_allclose(weights[key], weight, rtol=0, atol=1e-11, err_msg=key)
    traffic = Traffic.total(outcome.traffic for outcome in outcomes)
    assert traffic.rows() == predicted_traffic(layout, world_size, int(reference.dropped[-1])).rows()


@pytest.mark.parametrize(
    ("strategy", "experts"), [(ep(2), [{0, 1, 2}, {3, 4, 5}]), (dealt(ep(2)), [{0, 2, 4}, {1, 3, 5}])]
)
def test_the_placement_says_which_experts_a_rank_holds(strategy, experts: list[set[int]], pool: WorkerPool) -> None:
    for outcome, expected in zip(pool.run(2, run_layout, Layout(strategy, steps=1)), experts, strict=True):
        names = [name.split(".") for name in outcome.weights if ".experts.routed." in name]
        assert {int(name[name.index("routed") + 1]) for name in names} == expected


def test_the_reference_trains(pool: WorkerPool, references: dict) -> None:
    reference = reference_of(Layout(), 1, pool, references)
    assert all(np.abs(gradient.array).max() > 0 for gradient in reference.first_gradients.values())
    bias = reference.weights["model.layers.1.attention.router.expert_bias_E"].array
    assert np.abs(bias).max() > 0
    assert len(set(reference.losses)) == len(reference.losses)


def test_every_option_of_the_reference_acts(pool: WorkerPool, references: dict) -> None:
    """Without one of them, the same run comes out otherwise."""
    layout = Layout(model=MODEL_ALL_OPTIONS, batching=DOCUMENTS)
    reference = reference_of(layout, 1, pool, references)
    assert min(reference.dropped) > 0
    assert min(reference.router_losses) > 0
    moe, attention = MODEL_ALL_OPTIONS.moe, MODEL_ALL_OPTIONS.attention
    models = [replace(MODEL_ALL_OPTIONS, moe=replace(moe, **{name: 0.0})) for name in LOSS_WEIGHTS]
    models += [replace(MODEL_ALL_OPTIONS, moe=replace(moe, capacity_factor=None))]
    models += [replace(MODEL_ALL_OPTIONS, moe=replace(moe, groups_per_token=3))]
    models += [replace(MODEL_ALL_OPTIONS, attention=replace(attention, rope_fraction=1.0))]
    others = [replace(layout, model=model) for model in models]
    others += [replace(layout, batching=batching) for batching in (DOCUMENTS_IN_LOSS, BatchMaker(None, False))]
    for other in others:
        (outcome,) = pool.run(1, run_layout, replace(other, steps=2))
        assert abs(outcome.losses[1] - reference.losses[1]) > 1e-9, other


@pytest.mark.parametrize("strategy", [DDP, pytest.param(FSDP, marks=pytest.mark.soak)], ids=["ddp", "fsdp"])
def test_two_ranks_equal_one_in_float32(strategy, pool: WorkerPool) -> None:
    """The same micro-batches, so the same sums up to their order."""
    reference = pool.run(1, run_layout, Layout(precision=FP32, micro_batch_size=4, steps=10))[0]
    for outcome in pool.run(2, run_layout, Layout(strategy, precision=FP32, steps=10)):
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_bfloat16_rounds_in_the_same_places_in_every_layout(strategy, pool: WorkerPool) -> None:
    """float32 masters are rounded at use in one process and before the gather in FSDP2: the first loss is the same."""
    exact = pool.run(1, run_layout, Layout(precision=FP32, micro_batch_size=4))[0]
    rounded = pool.run(1, run_layout, Layout(precision=BF16, micro_batch_size=4))[0]
    assert rounded.losses != exact.losses
    np.testing.assert_allclose(rounded.losses, exact.losses, rtol=0, atol=5e-2)
    outcome = pool.run(2, run_layout, Layout(strategy, precision=BF16))[0]
    assert outcome.losses[0] == pytest.approx(rounded.losses[0], abs=1e-7)
    np.testing.assert_allclose(outcome.losses, rounded.losses, rtol=0, atol=2e-2)


def lose_a_gradient(layout: Layout) -> None:
    """The shared experts' output is cut from the graph, as a hook that does not fire would."""
    with pytest.MonkeyPatch.context() as patch:
        forward = FeedForward.forward
        patch.setattr(FeedForward, "forward", lambda self, x: forward(self, x).detach())
        run_layout(layout)


@pytest.mark.parametrize("strategy", [SINGLE, DDP, FSDP], ids=["single", "ddp", "fsdp"])
def test_a_lost_gradient_stops_the_run(strategy, pool: WorkerPool) -> None:
    """Zeros that nobody computed would train on, silently wrong."""
    with pytest.raises(WorkerFailure, match=r"no gradient for .*experts\.shared\.down\.weight"):
        pool.run(1 if strategy is SINGLE else 2, lose_a_gradient, Layout(strategy))


def test_ddp_issues_one_all_reduce_per_bucket_and_step(pool: WorkerPool) -> None:
    """Four micro-batches of accumulation must not multiply communication."""
    layout = Layout(DDP, OverlapConfig(bucket_mib=1e-6), micro_batch_size=1, steps=2)
    outcome = pool.run(2, run_layout, layout)[0]
    with torch.device("meta"):
        n_parameters = len(list(Transformer(layout.model, torch.float64).parameters()))
    assert outcome.calls[CommKind.dp, "all_reduce"] == 2 * n_parameters
    one_bucket = pool.run(2, run_layout, replace(layout, overlap=OverlapConfig(bucket_mib=100)))[0]
    assert one_bucket.calls[CommKind.dp, "all_reduce"] == 2 == one_bucket.waits[CommKind.dp]
    assert one_bucket.calls[CommKind.control, "all_reduce"] == 2 + len(one_bucket.evals)


def test_hsdp_sums_over_replicas_once_per_step(pool: WorkerPool) -> None:
    """Accumulation adds reduce-scatters, not all-reduces over the replicas."""
    at_once, accumulated = (
        pool.run(4, run_layout, Layout(HSDP, micro_batch_size=micro, steps=1))[0].traffic.calls for micro in (None, 1)
    )
    between_replicas = Channel(CommKind.fsdp, "all_reduce", 2)
    assert at_once[between_replicas] == accumulated[between_replicas] > 0
    scattered = Channel(CommKind.fsdp, "reduce_scatter", 2)
    assert 2 * at_once[scattered] == accumulated[scattered]
