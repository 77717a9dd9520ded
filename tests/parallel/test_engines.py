"""Engines of other libraries against the native single process, in float32 (DeepSpeed knows no float64).

Not in the session's pool: these libraries keep state in their modules, which must not leak into other tests.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness.engine_run import LAYOUT, another_pool, as_if_on_gpus, run_engine, sampled
from harness.layout_run import (
    BF16,
    DDP,
    ENGINES,
    FP32,
    FP64,
    FSDP,
    MODEL_MLA_SOFTMAX,
    Layout,
    Outcome,
    assert_routed_alike,
    batches_of,
    merged,
    merged_gradients,
    open_layout,
    run_layout,
    this_world,
)
from harness.worker_pool import WorkerFailure, WorkerPool
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from models.config import ConfigError
from models.feed_forward import FeedForward
from parallel import deepspeed_engine
from parallel.accelerate_engine import AccelerateEngine
from parallel.check_engine import check_engine_device
from parallel.comm import Communicator
from parallel.config import EngineName, OverlapConfig, Recompute, Reduction, StrategyConfig
from train.step import OptimizerStep


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with another_pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def references() -> dict[str, Outcome]:
    return {}


def reference_of(layout: Layout, ranks: int, pool: WorkerPool, known: dict[str, Outcome]) -> Outcome:
    """One process, natively, that sees in a micro-batch what the ranks see together."""
    micro_batch = (layout.micro_batch_size or layout.global_batch_size // ranks) * ranks
    single = replace(layout, strategy=Layout().strategy, overlap=OverlapConfig(), micro_batch_size=micro_batch)
    if repr(single) not in known:
        known[repr(single)] = pool.run(1, run_layout, single)[0]
    return known[repr(single)]


def assert_equal_in_float32(outcomes: list[Outcome], reference: Outcome) -> None:
    """Gradients of the first step to 1e-6 of the largest tensor's norm; the rest as far as AdamW lets rounding grow."""
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=2e-5)
        np.testing.assert_allclose(outcome.evals, reference.evals, rtol=0, atol=2e-5)
        np.testing.assert_allclose(outcome.router_losses, reference.router_losses, rtol=0, atol=2e-5)
        np.testing.assert_allclose(outcome.grad_norms, reference.grad_norms, rtol=1e-4)
        assert outcome.grad_norms[0] == pytest.approx(reference.grad_norms[0], rel=1e-6)
        assert outcome.chosen == reference.chosen
        assert outcome.dropped == reference.dropped
        assert_routed_alike(outcome, reference, 2e-5)
    expected, got = merged_gradients([reference]), merged_gradients(outcomes)
    assert got.keys() == expected.keys()
    largest = max(np.linalg.norm(gradient) for gradient in expected.values())
    for key, gradient in expected.items():
        assert np.linalg.norm(got[key] - gradient) < 1e-6 * largest, key
    expected, got = merged([reference]), merged(outcomes)
    assert got.keys() == expected.keys()
    for key, weight in expected.items():
        if key.endswith("expert_bias_E"):
            np.testing.assert_array_equal(got[key], weight, err_msg=key)
        assert np.linalg.norm(got[key] - weight) <= 1e-3 * np.linalg.norm(weight), key


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_equals_one_process_in_float32(name: str, pool: WorkerPool, references: dict) -> None:
    """Every option of the model, documents, accumulation, clipping, evaluation between steps."""
    reference = reference_of(LAYOUT, 2, pool, references)
    assert min(reference.grad_norms) > 1.0  # clipped
    assert_equal_in_float32(pool.run(2, run_engine, replace(LAYOUT, strategy=ENGINES[name])), reference)


VARIANTS = {
    "recompute_full": (2, {"recompute": Recompute.full}, {}),
    "recompute_selective": (2, {"recompute": Recompute.selective}, {}),
    "latent_attention": (2, {}, {"model": MODEL_MLA_SOFTMAX}),
    "three_ranks": (3, {}, {"global_batch_size": 12, "eval_sequences": 12}),
    "four_ranks": (4, {}, {"micro_batch_size": None}),
    "small_buckets": (2, {}, {"overlap": OverlapConfig(bucket_mib=0.005)}),
}
VARIANTS_OF = [(name, variant) for name in ENGINES for variant in VARIANTS]
DEEPSPEED = [name for name in ENGINES if name.startswith("deepspeed")]
IN_EVERY_RUN = {("deepspeed_zero3", "recompute_full"), ("deepspeed_zero2", "small_buckets")}


@pytest.mark.parametrize(("name", "variant"), sampled(IN_EVERY_RUN, VARIANTS_OF))
def test_variants(name: str, variant: str, pool: WorkerPool, references: dict) -> None:
    ranks, of_strategy, of_layout = VARIANTS[variant]
    layout = replace(LAYOUT, **of_layout)
    with nullcontext(pool) if ranks == 2 else another_pool() as ranks_pool:
        outcomes = ranks_pool.run(ranks, run_engine, replace(layout, strategy=replace(ENGINES[name], **of_strategy)))
    assert_equal_in_float32(outcomes, reference_of(layout, ranks, pool, references))


@pytest.mark.parametrize("name", sampled({"deepspeed_zero3"}, DEEPSPEED))
def test_deepspeed_without_overlap(name: str, pool: WorkerPool, references: dict) -> None:
    layout = replace(LAYOUT, overlap=OverlapConfig(grad_reduce=False))
    outcomes = pool.run(2, run_engine, replace(layout, strategy=ENGINES[name]))
    assert_equal_in_float32(outcomes, reference_of(layout, 2, pool, references))


@pytest.mark.soak
@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_in_one_process(name: str, pool: WorkerPool, references: dict) -> None:
    with another_pool() as one:
        outcomes = one.run(1, run_engine, replace(LAYOUT, strategy=ENGINES[name]))
    assert_equal_in_float32(outcomes, reference_of(LAYOUT, 1, pool, references))


def test_accelerate_equals_one_process_in_float64(pool: WorkerPool, references: dict) -> None:
    layout = replace(LAYOUT, precision=FP64)
    reference = reference_of(layout, 2, pool, references)
    for outcome in pool.run(2, run_engine, replace(layout, strategy=ENGINES["accelerate_ddp"])):
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=1e-12)
        # Accelerate sums the norm in the gradients' own dtype.
        np.testing.assert_allclose(outcome.grad_norms, reference.grad_norms, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sampled({"deepspeed_zero3"}, ENGINES))
def test_bfloat16(name: str, pool: WorkerPool, references: dict) -> None:
    """The first loss is of weights that are rounded alike everywhere; then gradients are rounded in other places."""
    layout = replace(LAYOUT, precision=BF16)
    native = references.setdefault("bf16", pool.run(2, run_layout, replace(layout, strategy=DDP))[0])
    for outcome in pool.run(2, run_engine, replace(layout, strategy=ENGINES[name])):
        assert outcome.losses[0] == pytest.approx(native.losses[0], abs=1e-6)
        assert outcome.chosen[0] == native.chosen[0]
        np.testing.assert_allclose(outcome.losses, native.losses, rtol=0, atol=2e-2)


def count_buckets(layout: Layout) -> list[int]:
    """Buckets that DDP reduces in each of two steps."""
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]
    world, comm = this_world(), Communicator()
    engine = open_layout(layout, world, comm)
    assert isinstance(engine, AccelerateEngine)
    buckets = []

    def reduce(group: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        buckets.append(bucket.index())
        return allreduce_hook(None, bucket)

    engine._wrapped.register_comm_hook(None, reduce)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
    batches, counts = batches_of(layout, engine.data), []
    for _ in range(2):
        step(next(batches), rate=1e-2)
        counts.append(len(buckets))
        buckets.clear()
    return counts


def test_accelerate_reduces_once_per_step(pool: WorkerPool) -> None:
    """Accumulation adds none; smaller buckets do."""
    layout = replace(LAYOUT, strategy=ENGINES["accelerate_ddp"], model=MODEL_MLA_SOFTMAX)
    for micro_batch_size in (4, 1):
        assert pool.run(2, count_buckets, replace(layout, micro_batch_size=micro_batch_size))[0] == [1, 1]
    # DDP's first plan has a bucket of 1 MiB whatever it is told.
    small = pool.run(2, count_buckets, replace(layout, overlap=OverlapConfig(bucket_mib=0.005)))[0]
    assert small[1] > 5


def lose_a_gradient(layout: Layout) -> None:
    """In the second step the shared experts' output is cut from the graph, as a hook that does not fire would."""
    calls, of_one_step = [], LAYOUT.model.n_layers * (LAYOUT.global_batch_size // 2 // 2)
    forward = FeedForward.forward

    def cut(self: FeedForward, x: torch.Tensor) -> torch.Tensor:
        calls.extend([x.shape] if torch.is_grad_enabled() else [])
        return forward(self, x).detach() if len(calls) > of_one_step else forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedForward, "forward", cut)
        run_engine(layout)


@pytest.mark.parametrize("name", sampled({"deepspeed_zero2"}, ENGINES))
def test_a_lost_gradient_stops_the_run(name: str) -> None:
    """DeepSpeed would put zeros in its place, and train on."""
    with another_pool() as pool, pytest.raises(WorkerFailure, match=r"no gradient for .*experts\.shared\.down\.weight"):
        pool.run(2, lose_a_gradient, replace(LAYOUT, strategy=ENGINES[name]))


def without_launcher(layout: Layout) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        del os.environ[name]
    run_layout(layout)


def with_another_stage(layout: Layout) -> None:
    with pytest.MonkeyPatch.context() as patch:
        config_of = deepspeed_engine._deepspeed_config
        patch.setattr(deepspeed_engine, "_deepspeed_config", lambda stage, *rest: config_of(1, *rest))
        run_engine(layout)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("accelerate_ddp", without_launcher, "asks: distributed_type is NO and not MULTI_CPU; num_processes is 1 and"),
        ("deepspeed_zero2", with_another_stage, "asks: ZeRO stage is 1 and not 2"),
    ],
)
def test_what_a_library_does_instead_is_an_error(name: str, wrong, said: str) -> None:
    with another_pool() as pool, pytest.raises(WorkerFailure, match=said):
        pool.run(2, wrong, replace(LAYOUT, strategy=ENGINES[name]))


def test_fsdp_of_accelerate_is_refused_on_cpu() -> None:
    strategy = StrategyConfig("accelerate_fsdp", Reduction.shard, engine=EngineName.accelerate, dp_shard=-1)
    with pytest.raises(ConfigError, match="strategy=accelerate_fsdp runs on GPUs only: on CPU Accelerate ignores"):
        check_engine_device(strategy, torch.device("cpu"))
    check_engine_device(strategy, torch.device("cuda", 0))
    check_engine_device(ENGINES["accelerate_ddp"], torch.device("cpu"))


def run_fsdp_of_accelerate(layout: Layout) -> Outcome:
    with as_if_on_gpus():
        return run_engine(layout)


@pytest.mark.parametrize(
    ("precision", "overlap"),
    [
        (FP64, OverlapConfig()),
        pytest.param(FP32, OverlapConfig(reshard_after_forward=False), marks=pytest.mark.soak),
        pytest.param(BF16, OverlapConfig(), marks=pytest.mark.soak),
    ],
    ids=["fp64", "fp32_gathered", "bf16"],
)
def test_fsdp_of_accelerate_if_it_ran_on_cpu(precision, overlap: OverlapConfig, references: dict) -> None:
    """What is ours of it: the start, the optimizer's tensors, sums, evaluation, counts and state by name."""
    layout = replace(LAYOUT, precision=precision, overlap=overlap)
    with another_pool() as pool:
        reference = reference_of(layout, 2, pool, references)
        sharded = replace(layout, strategy=replace(FSDP, engine=EngineName.accelerate))
        outcomes = pool.run(2, run_fsdp_of_accelerate, sharded)
    bound = {"fp64": 1e-12, "fp32": 2e-5, "bf16": 2e-2}[precision.name]
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=bound)
        np.testing.assert_allclose(outcome.evals, reference.evals, rtol=0, atol=bound)
        np.testing.assert_allclose(outcome.grad_norms, reference.grad_norms, rtol=0, atol=bound)
    if precision is not BF16:
        assert outcomes[0].chosen == reference.chosen
        for key, weight in merged([reference]).items():
            assert np.linalg.norm(merged(outcomes)[key] - weight) <= 50 * bound * np.linalg.norm(weight), key
