"""Experts without tokens, ranks without tokens, one expert with all of them: every dispatcher takes what comes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from harness.layout_run import DDP, FSDP, MODEL, Layout, Outcome, merged, merged_gradients, run_layout
from harness.predicted_traffic import predicted_traffic
from harness.worker_pool import WorkerPool

from models.config import Balance
from models.router import Router
from parallel.config import StrategyConfig
from parallel.expert_parallel.build import DispatcherName
from parallel.traffic.tally import Traffic

N_EXPERTS, N_PAIRS = MODEL.moe.n_routed, 8 * 16
"""Of a step: sequences × tokens, for each expert that a token takes."""
WANTED = {
    "all_to_one_expert": (1, [4]),
    "none_to_a_rank": (2, [0, 2]),
    "an_idle_expert_on_each_rank": (2, [1, 2, 4, 5]),
}
"""How many experts a token takes, and which ones there are to take. Of 6 experts each of 2 ranks has 3."""


def run_pinned(layout: Layout, wanted: list[int]) -> Outcome:
    """Every router chooses among `wanted` alone: by its bias, which does not weigh."""
    bias_E = torch.full((N_EXPERTS,), -100.0, dtype=torch.float64)
    bias_E[wanted] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Router, "reset_buffers", lambda router: router.expert_bias_E.copy_(bias_E))
        return run_layout(layout)


@pytest.mark.parametrize("dispatcher", [DispatcherName.all_to_all, DispatcherName.all_gather])
@pytest.mark.parametrize("name", WANTED)
def test_rank_and_expert_loads(name: str, dispatcher: DispatcherName, pool: WorkerPool) -> None:
    compare(name, 2, replace(DDP, ep=2, dispatcher=dispatcher), pool)


def test_sharded_experts_without_tokens(pool: WorkerPool) -> None:
    """FSDP2 scatters the gradients of experts that no token reached, and these are zeros, not missing."""
    compare("all_to_one_expert", 4, replace(FSDP, ep=2), pool)


def compare(name: str, world_size: int, strategy: StrategyConfig, pool: WorkerPool) -> None:
    top_k, wanted = WANTED[name]
    moe = replace(MODEL.moe, top_k=top_k, balance=Balance.none)
    layout = Layout(strategy, model=replace(MODEL, moe=moe), steps=2)
    (reference,) = pool.run(1, run_pinned, replace(layout, strategy=StrategyConfig()), wanted)
    outcomes = pool.run(world_size, run_pinned, layout, wanted)
    idle = [expert for expert in range(N_EXPERTS) if expert not in wanted]
    chosen_SLE = np.array(outcomes[0].chosen)
    assert (chosen_SLE[..., idle] == 0).all()
    assert (chosen_SLE[..., wanted] > 0).all()
    assert (chosen_SLE.sum(-1) == top_k * N_PAIRS).all()
    np.testing.assert_array_equal(chosen_SLE, reference.chosen)

    np.testing.assert_allclose(outcomes[0].losses, reference.losses, rtol=0, atol=1e-12)
    gradients = merged_gradients(outcomes)
    for key, gradient in merged_gradients([reference]).items():
        np.testing.assert_allclose(gradients[key], gradient, rtol=0, atol=1e-13, err_msg=key)
    for expert in idle:
        assert not gradients[f"gradient.layers.1.experts.routed.{expert}.up_FD"].any()
    weights = merged(outcomes)
    for key, weight in merged([reference]).items():
        np.testing.assert_allclose(weights[key], weight, rtol=0, atol=1e-11, err_msg=key)
    traffic = Traffic.total(outcome.traffic for outcome in outcomes)
    assert traffic.rows() == predicted_traffic(layout, world_size).rows()
