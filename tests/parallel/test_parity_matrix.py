"""The full matrix of what test_parity.py takes samples of; ten steps each. `make soak`."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from harness.layout_run import (
    DDP,
    DOCUMENTS,
    FSDP,
    HSDP,
    MODEL,
    MODEL_ALL_OPTIONS,
    MODEL_MLA_SOFTMAX,
    Layout,
    merged,
    run_layout,
)
from harness.worker_pool import WorkerPool

from models.config import Balance, ModelConfig
from parallel.config import OverlapConfig, Reduction, StrategyConfig

pytestmark = pytest.mark.soak

STRATEGIES = {"ddp": DDP, "fsdp": FSDP, "hsdp": HSDP}
MODELS = {
    "gqa": MODEL,
    "mla_softmax": MODEL_MLA_SOFTMAX,
    "unbalanced": replace(MODEL, moe=replace(MODEL.moe, balance=Balance.none, n_shared=0)),
    # But for the batch-level loss, which is one of a micro-batch over all ranks: other micro-batches, another loss.
    "all_options": replace(MODEL_ALL_OPTIONS, moe=replace(MODEL_ALL_OPTIONS.moe, batch_loss_weight=0.0)),
    "all_dense": replace(MODEL, n_dense_layers=MODEL.n_layers),
    "all_moe_top1": replace(MODEL, n_dense_layers=0, moe=replace(MODEL.moe, top_k=1)),
}
OVERLAPS = {
    "none": OverlapConfig(grad_reduce=False),
    "default": OverlapConfig(bucket_mib=0.01),
    "max": OverlapConfig(param_prefetch=2, reshard_after_forward=False),
}


def possible(strategy: StrategyConfig, world_size: int, overlap: str) -> bool:
    if strategy is HSDP and world_size != 4:
        return False
    return not (strategy.reduction is Reduction.shard and overlap == "none")


CASES = [
    case
    for case in product(STRATEGIES, (1, 2, 4), MODELS, OVERLAPS, (None, 1))
    if possible(STRATEGIES[case[0]], case[1], case[3])
]


@pytest.fixture(scope="module")
def references(pool: WorkerPool) -> dict:
    def reference(model: ModelConfig):
        (outcome,) = pool.run(1, run_layout, Layout(model=model, batching=DOCUMENTS, steps=10))
        return outcome

    return {name: reference(model) for name, model in MODELS.items()}


@pytest.mark.parametrize(("strategy", "world_size", "model", "overlap", "micro_batch_size"), CASES)
def test_layout_equals_one_process(
    strategy: str,
    world_size: int,
    model: str,
    overlap: str,
    micro_batch_size: int | None,
    pool: WorkerPool,
    references: dict,
) -> None:
    layout = Layout(
        STRATEGIES[strategy],
        OVERLAPS[overlap],
        model=MODELS[model],
        batching=DOCUMENTS,
        micro_batch_size=micro_batch_size,
        steps=10,
    )
    outcomes = pool.run(world_size, run_layout, layout)
    reference = references[model]
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.router_losses, reference.router_losses, rtol=0, atol=1e-12)
        assert outcome.dropped == reference.dropped
        np.testing.assert_allclose(outcome.evals, reference.evals, rtol=0, atol=1e-12)
        np.testing.assert_allclose(outcome.grad_norms, reference.grad_norms, rtol=0, atol=1e-11)
    weights = merged(outcomes)
    assert weights.keys() == reference.weights.keys()
    for key, weight in merged([reference]).items():
        np.testing.assert_allclose(weights[key], weight, rtol=0, atol=1e-10, err_msg=key)
