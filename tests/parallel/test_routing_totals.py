"""What is logged of the routing: a step by hand, token by token, and the same in layouts that share it out otherwise.

test_parity.py and its matrix compare all layouts; here are those in which a sum could be taken twice: recomputation,
parts of sequences, stages, and layers that two chains hold.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from harness.layout_run import (
    DDP,
    FP32,
    MODEL,
    MODEL_MLA_SOFTMAX,
    Layout,
    Outcome,
    assert_routed_alike,
    batches_of,
    open_layout,
    run_layout,
    this_world,
)
from harness.worker_pool import WorkerPool
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from models.config import ScoreFunction
from models.router import Router, Routing, score_entropy_sum
from parallel.comm import Communicator
from parallel.config import Recompute, Reduction, StrategyConfig
from parallel.expert_parallel.build import PlacementName
from parallel.pipeline.schedules import ScheduleName
from train.metrics.routing import routing_row
from train.step import OptimizerStep

EIGHT_EXPERTS = replace(MODEL, moe=replace(MODEL.moe, n_routed=8))
SOFTMAX = replace(MODEL_MLA_SOFTMAX, moe=replace(MODEL_MLA_SOFTMAX.moe, n_routed=8))
DEEP = replace(EIGHT_EXPERTS, n_layers=9)
EP = StrategyConfig("ep", Reduction.all_reduce, dp_replicate=-1, ep=2)


def by_hand(layout: Layout) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Of each step: the logged row, and the same from what every router saw of every token. In one process."""
    comm = Communicator()
    engine = open_layout(layout, this_world(), comm)
    moe = layout.model.moe
    entropies: list[float] = []
    loads: dict[nn.Module, list[int]] = {}
    biases: list[list[float]] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(module, Router):
            return
        assert isinstance(output, Routing)
        for x_D, experts_K in zip(inputs[0].flatten(0, 1).tolist(), output.experts_TK.tolist(), strict=True):
            logits = [math.fsum(a * b for a, b in zip(x_D, row, strict=True)) for row in module.gate.weight.tolist()]
            softmax = moe.score is ScoreFunction.softmax
            scores = [math.exp(logit) if softmax else 1 / (1 + math.exp(-logit)) for logit in logits]
            entropies.append(-math.fsum(s / sum(scores) * math.log(s / sum(scores)) for s in scores))
            for expert in experts_K:
                loads.setdefault(module, [0] * moe.n_routed)[expert] += 1
        biases[:] = [router.expert_bias_E.tolist() for router in loads]  # of all routers, once the last one was called

    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
    batches, rows = batches_of(layout, engine.data), []
    handle = register_module_forward_hook(look)
    for _ in range(layout.steps):
        result = step(next(batches), rate=layout.rate)
        shares = [[load / sum(of_layer) for load in of_layer] for of_layer in loads.values()]
        n_layers, n_experts = len(loads), moe.n_routed
        entropy_of_loads = [-sum(p * math.log(p) for p in of_layer if p) for of_layer in shares]
        expected = {
            "moe/load_max_over_mean": sum(max(of_layer) * n_experts for of_layer in shares) / n_layers,
            "moe/load_entropy": sum(entropy_of_loads) / n_layers / math.log(n_experts),
            "moe/router_entropy": sum(entropies) / len(entropies),
            "moe/bias_norm": math.sqrt(sum(b * b for of_layer in biases for b in of_layer)),
        }
        rows.append((routing_row(result.routing, moe, engine.placement), expected))
        entropies.clear()
        loads.clear()
    handle.remove()
    return rows


@pytest.mark.parametrize("model", [EIGHT_EXPERTS, SOFTMAX], ids=["sigmoid", "softmax"])
def test_one_process_by_hand(model, pool: WorkerPool) -> None:
    (rows,) = pool.run(1, by_hand, Layout(model=model, global_batch_size=4, micro_batch_size=2))
    assert len(rows) == 3
    for logged, expected in rows:
        assert logged == pytest.approx(expected, rel=1e-12)
    norms = [logged["moe/bias_norm"] for logged, _ in rows]
    assert norms[0] == 0 < norms[1] < norms[2]  # the first step's choices were made without


LAYOUTS = {
    "recomputed": (1, Layout(StrategyConfig(recompute=Recompute.full), model=EIGHT_EXPERTS, micro_batch_size=2)),
    "recomputed_selective": (1, Layout(StrategyConfig(recompute=Recompute.selective), model=EIGHT_EXPERTS)),
    "ddp": (2, Layout(DDP, model=EIGHT_EXPERTS)),
    "ep_round_robin": (2, Layout(replace(EP, placement=PlacementName.round_robin), model=EIGHT_EXPERTS)),
    "tp_ep_recomputed": (4, Layout(replace(EP, tp=2, recompute=Recompute.full), model=EIGHT_EXPERTS)),
    "pp": (2, Layout(StrategyConfig("pp", pp=2), model=DEEP)),
    "pp_recomputed": (2, Layout(StrategyConfig("pp", pp=2, recompute=Recompute.full), model=DEEP)),
    "dualpipe": (2, Layout(StrategyConfig("pp", pp=2, schedule=ScheduleName.dualpipe), model=DEEP)),
}


@pytest.fixture(scope="module")
def references() -> dict[str, Outcome]:
    return {}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_logs_the_same(name: str, pool: WorkerPool, references: dict[str, Outcome]) -> None:
    n_ranks, layout = LAYOUTS[name]
    single = Layout(model=layout.model)
    key = repr(single)
    if key not in references:
        (references[key],) = pool.run(1, run_layout, single)
    for outcome in pool.run(n_ranks, run_layout, layout):
        assert outcome.chosen == references[key].chosen  # all that is a mean hides what is summed twice alike
        assert_routed_alike(outcome, references[key], 1e-12)
        for row, chosen_LE in zip(outcome.routing, outcome.chosen, strict=True):
            assert row.get("moe/rank_load_max_over_mean") == expected_rank_load(layout, torch.tensor(chosen_LE))


def expected_rank_load(layout: Layout, chosen_LE: Tensor) -> float | None:
    """Of two expert-parallel ranks, by what the placement's name says; None where there is one."""
    if layout.strategy.ep == 1:
        return None
    dealt = layout.strategy.placement is PlacementName.round_robin
    first_L = (chosen_LE[:, 0::2] if dealt else chosen_LE[:, : chosen_LE.shape[1] // 2]).sum(-1)
    share_L = first_L / chosen_LE.sum(-1)
    return pytest.approx((2 * torch.maximum(share_L, 1 - share_L)).mean().item(), rel=1e-12)


@pytest.mark.parametrize("strategy", [StrategyConfig(), DDP], ids=["single", "ddp"])
def test_float32_is_near_float64(strategy: StrategyConfig, pool: WorkerPool) -> None:
    """Before weights drift apart: of the first step."""
    n_ranks = 1 if strategy.name == "single" else 2
    exact, rounded = (
        pool.run(n_ranks, run_layout, Layout(strategy, model=EIGHT_EXPERTS, steps=1, **more))[0].routing[0]
        for more in ({}, {"precision": FP32})
    )
    assert rounded["moe/router_entropy"] == pytest.approx(exact["moe/router_entropy"], rel=1e-6)


def test_entropy_at_its_ends() -> None:
    alike, one, none = torch.full((2, 3, 8), 0.25), torch.eye(8).unsqueeze(0), torch.zeros(1, 4, 8)
    assert score_entropy_sum(alike).item() == pytest.approx(6 * math.log(8), rel=1e-6)
    assert score_entropy_sum(one).item() == 0
    assert score_entropy_sum(none).item() == 0  # sigmoid scores that have underflowed
