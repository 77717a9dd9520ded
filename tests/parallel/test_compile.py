"""strategy.compile: the same numbers from one graph a part, none of which breaks, and none made again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from harness.layout_run import (
    DDP,
    FSDP,
    MODEL,
    MODEL_MLA_SOFTMAX,
    ZERO1,
    Layout,
    Outcome,
    merged,
    merged_gradients,
    run_layout,
)
from harness.worker_pool import WorkerPool
from torch._dynamo.utils import counters

from models.config import ConfigError, ModelConfig
from parallel.check import check_layout
from parallel.config import OverlapConfig, Recompute, StrategyConfig
from parallel.mesh import Degrees
from parallel.pipeline.schedules import ScheduleName
from parallel.torch_internals import graphs_made

EP = replace(DDP, ep=2)
PAIRED = OverlapConfig(forward_backward=True, shared_experts=True)
CASES = {
    "ep_side_by_side": Layout(EP, PAIRED, micro_batch_size=1),
    "ddp": Layout(DDP, model=MODEL_MLA_SOFTMAX),
    "fsdp_full": Layout(replace(FSDP, recompute=Recompute.full), micro_batch_size=2),
    "zero1": Layout(ZERO1),
    "pp_interleaved": Layout(
        StrategyConfig("pp", pp=2, schedule=ScheduleName.interleaved_1f1b), model=replace(MODEL, n_layers=5)
    ),
}
IN_MAKE_TEST = "ep_side_by_side"


def compiled(layout: Layout) -> tuple[Outcome, int, int]:
    """Run it in this rank; how many graphs were made in all, and how many breaks there were."""
    torch._dynamo.reset()
    counters.clear()
    outcome = run_layout(replace(layout, strategy=replace(layout.strategy, compile=True)))
    return outcome, *graphs_made()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == IN_MAKE_TEST else pytest.mark.soak) for name in CASES]
)
def test_numbers_are_those_of_the_loop_and_graphs_are_few(name: str, pool: WorkerPool) -> None:
    layout = CASES[name]
    plain = pool.run(2, run_layout, layout)
    found = pool.run(2, compiled, layout)
    outcomes = [outcome for outcome, _, _ in found]
    for ours, expected in zip(outcomes, plain, strict=True):
        assert ours.losses == pytest.approx(expected.losses, rel=0, abs=1e-12)
        assert ours.evals == pytest.approx(expected.evals, rel=0, abs=1e-12)
        assert ours.calls == expected.calls
    for of in (merged, merged_gradients):
        expected_of = of(plain)
        for key, value in of(outcomes).items():
            np.testing.assert_allclose(value, expected_of[key], rtol=0, atol=1e-11, err_msg=key)
    for _, graphs, breaks in found:
        assert breaks == 0
        # Attention without a router, and with one; the dense feed-forward; shared experts, or their two halves: each in
        # training and in evaluation. Three steps made no other.
        halves = layout.overlap.shared_experts
        assert 0 < graphs <= 2 * (4 + halves)


@pytest.mark.parametrize(
    ("strategy", "model", "world", "said"),
    [
        (StrategyConfig("tp", tp=2, compile=True), MODEL, 2, "with strategy.tp=2 sequences are gathered inside"),
        (
            StrategyConfig("pp", pp=2, schedule=ScheduleName.zbv, compile=True),
            replace(MODEL, n_layers=4),
            2,
            "strategy.schedule=zbv splits backward, which a graph does whole",
        ),
        (
            replace(DDP, compile=True, recompute=Recompute.selective),
            MODEL,
            2,
            "what is cheap is computed again within a graph anyway",
        ),
        (
            replace(DDP, compile=True),
            replace(MODEL, moe=replace(MODEL.moe, batch_loss_weight=0.1)),
            2,
            "with model.moe.batch_loss_weight=0.1 loads are summed over ranks inside",
        ),
    ],
)
def test_what_cannot_be_one_graph_is_refused(
    strategy: StrategyConfig, model: ModelConfig, world: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=r"^strategy\.compile=true: " + said.replace(".", r"\.")):
        check_layout(model, strategy, OverlapConfig(), Degrees.resolve(strategy, world), 8, 16)
