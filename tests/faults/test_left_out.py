"""A step that is not finite moves nothing, in any layout; and copies stay equal to the bit, through it and after."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.engine_run import LAYOUT, another_pool, as_if_on_gpus, forget_group, sampled
from harness.layout_run import (
    BF16,
    DDP,
    ENGINES,
    FP32,
    FSDP,
    MODEL,
    Layout,
    batches_of,
    open_layout,
    run_layout,
    this_world,
)
from harness.strategies import NAMES, strategy
from harness.worker_pool import WorkerPool

from launch.verify.pieces import Piece, merge, pieces
from parallel.comm import Communicator
from parallel.config import EngineName
from parallel.engine import Engine
from parallel.pipeline.loss_scale import LossScale
from parallel.pipeline.schedules import ScheduleName
from train.faults.config import Fault, FaultConfig
from train.faults.injector import Injector
from train.faults.replicas import check_replicas
from train.step import OptimizerStep

WORLDS = {**dict.fromkeys(NAMES, 4), "single": 1, "pp_fsdp_ep": 8, "pp_fsdp_tp_ep": 8}
WORLDS |= dict.fromkeys(("ddp", "fsdp", "zero1", "tp", "ep", "pp"), 2)
"""Ranks, by strategy."""
BAD = 2
"""The step that is not finite, of 4."""
BIAS = "expert_bias_E"


def run_with_a_bad_step(layout: Layout, spoilt_rank: int, folder: Path) -> tuple[list[float], list[dict[str, Piece]]]:
    """Losses of all steps but the bad one; the state before it, after it and at the end."""
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]
    world, comm = this_world(), Communicator()
    engine = open_layout(layout, world, comm)
    injector = Injector([FaultConfig(Fault.non_finite, spoilt_rank, BAD)], world.rank, 1, folder)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0, injector=injector)
    batches = batches_of(layout, engine.data)
    losses, states = [], []
    for injector.step in range(1, 5):
        if injector.step == BAD:
            states.append(state_of(engine))
        result = step(next(batches), layout.rate)
        assert result.left_out.item() is (injector.step == BAD)
        if injector.step == BAD:
            assert not result.loss.isfinite() or not result.router_loss.isfinite()
            states.append(state_of(engine))
        else:
            losses.append(result.loss.item())
        if layout.strategy.engine is not EngineName.deepspeed:
            check_replicas(engine, comm, injector.step)
    states.append(state_of(engine))
    forget_group(layout.strategy)
    return losses, states


def run_without_that_step(layout: Layout) -> tuple[list[float], dict[str, Piece]]:
    """The same, where it was never begun."""
    world, comm = this_world(), Communicator()
    engine = open_layout(layout, world, comm)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
    batches = batches_of(layout, engine.data)
    losses = []
    for number in range(1, 5):
        tokens_MBS = next(batches)
        if number != BAD:
            losses.append(step(tokens_MBS, layout.rate).loss.item())
    return losses, state_of(engine)


def state_of(engine: Engine) -> dict[str, Piece]:
    """Copies of weights, biases and moments."""
    return pieces(engine.weights() | engine.moments())


def assert_left_out(
    pool: WorkerPool, world_size: int, layout: Layout, folder: Path, alone: Layout, tolerance: float, run=None
) -> None:
    """To the bit before and after the bad step; as of one process that never began it to `tolerance`, step counts
    included: they divide the moments."""
    told = pool.run(world_size, run or run_with_a_bad_step, layout, world_size - 1, folder)
    for _, (before, after, _) in told:
        assert before.keys() == after.keys()
        for name, piece in before.items():
            np.testing.assert_array_equal(after[name].array, piece.array, err_msg=name)
    before = merge([states[0] for _, states in told])
    assert any(BIAS in name and array.any() for name, array in before.items()), "no bias had moved before"
    ((expected, expected_state),) = pool.run(1, run_without_that_step, alone)
    for losses, _ in told:
        np.testing.assert_allclose(losses, expected, rtol=0, atol=tolerance)
    if tolerance < 1e-9:
        state, reference = merge([states[2] for _, states in told]), merge([expected_state])
        for name, array in reference.items():
            np.testing.assert_allclose(state[name], array, rtol=0, atol=10 * tolerance, err_msg=name)


def layout_of(name: str) -> Layout:
    model = replace(MODEL, n_layers=4, moe=replace(MODEL.moe, n_routed=8))
    return Layout(strategy(name), model=model, global_batch_size=16)


EVERY_RUN = {"ddp", "fsdp", "zero1", "tp", "ep", "pp"}


@pytest.mark.parametrize("name", sampled(EVERY_RUN, NAMES))
def test_a_layout(name: str, pool: WorkerPool, tmp_path: Path) -> None:
    layout = layout_of(name)
    assert_left_out(pool, WORLDS[name], layout, tmp_path, replace(layout, strategy=Layout().strategy), 1e-12)


@pytest.mark.soak
@pytest.mark.parametrize("precision", [FP32, BF16], ids=lambda precision: precision.name)
@pytest.mark.parametrize("name", NAMES)
def test_copies_stay_equal_in_less_precision(name: str, precision, pool: WorkerPool, tmp_path: Path) -> None:
    layout = replace(layout_of(name), precision=precision)
    told = pool.run(WORLDS[name], run_with_a_bad_step, layout, 0, tmp_path)
    for _, (before, after, _) in told:
        for key, piece in before.items():
            np.testing.assert_array_equal(after[key].array, piece.array, err_msg=key)


@pytest.mark.soak
@pytest.mark.parametrize("schedule", ScheduleName)
def test_a_schedule(schedule: ScheduleName, pool: WorkerPool, tmp_path: Path) -> None:
    layout = layout_of("pp")
    layout = replace(
        layout, strategy=replace(layout.strategy, schedule=schedule), model=replace(layout.model, n_layers=9)
    )
    assert_left_out(pool, 2, layout, tmp_path, replace(layout, strategy=Layout().strategy), 1e-12)


@pytest.mark.parametrize("name", sampled({"accelerate_ddp", "deepspeed_zero3"}, ENGINES))
@pytest.mark.parametrize("precision", [FP32, pytest.param(BF16, marks=pytest.mark.soak)], ids=lambda p: p.name)
def test_an_engine(name: str, precision, tmp_path: Path) -> None:
    layout = replace(LAYOUT, strategy=ENGINES[name], precision=precision)
    with another_pool() as pool:
        alone = replace(layout, strategy=Layout().strategy, micro_batch_size=4)
        assert_left_out(pool, 2, layout, tmp_path, alone, 2e-5 if precision is FP32 else 3e-2)


def run_accelerate_as_on_gpus(layout: Layout, spoilt_rank: int, folder: Path) -> tuple:
    with as_if_on_gpus():
        return run_with_a_bad_step(layout, spoilt_rank, folder)


@pytest.mark.soak
def test_fsdp_of_accelerate_if_it_ran_on_cpu(tmp_path: Path) -> None:
    layout = replace(LAYOUT, strategy=replace(FSDP, engine=EngineName.accelerate), precision=FP32)
    with another_pool() as pool:
        alone = replace(layout, strategy=Layout().strategy, micro_batch_size=4)
        assert_left_out(pool, 2, layout, tmp_path, alone, 2e-5, run_accelerate_as_on_gpus)


def run_with_one_bad_gradient(layout: Layout) -> tuple[bool, bool]:
    """Whether a step was left out in which only rank 1 had a gradient that is not finite, and only at the end; and
    whether what came of it is what was before."""
    world, comm = this_world(), Communicator()
    engine = open_layout(layout, world, comm)

    def spoil(engine: Engine) -> None:
        if world.rank == 1:
            next(s.local for s in engine.gradients().values() if s.local.numel()).view(-1)[0] = float("inf")

    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, 1.0, before_update=spoil)
    before = state_of(engine)
    result = step(next(batches_of(layout, engine.data)), layout.rate)
    assert result.loss.isfinite()
    after = state_of(engine)
    return bool(result.left_out), all(np.array_equal(after[name].array, before[name].array) for name in before)


def test_a_gradient_on_one_rank_holds_up_all(pool: WorkerPool) -> None:
    assert pool.run(2, run_with_one_bad_gradient, Layout(FSDP)) == [(True, True)] * 2


def update_with_a_bad_loss(layout: Layout) -> tuple[bool, bool]:
    """The same for finite gradients and a loss that is not."""
    world, comm = this_world(), Communicator()
    engine = open_layout(layout, world, comm)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
    batches = batches_of(layout, engine.data)
    step(next(batches), layout.rate)
    before = state_of(engine)
    tokens_MBS = next(batches)
    n_tokens = layout.global_batch_size * (tokens_MBS.shape[-1] - 1)
    engine.forward_backward([layout.batching(tokens_BS) for tokens_BS in tokens_MBS], LossScale(n_tokens, n_tokens))
    engine.take_routing()
    norm, left_out = engine.update(1.0, torch.tensor([float("inf"), 0.0], dtype=torch.float64))
    assert 0 < norm < float("inf")
    after = state_of(engine)
    same = all(np.array_equal(after[name].array, before[name].array) for name in before)
    assert not step(next(batches), layout.rate).left_out
    assert any(not np.array_equal(piece.array, before[name].array) for name, piece in state_of(engine).items())
    forget_group(layout.strategy)
    return bool(left_out), same


def test_a_loss_alone_is_enough(pool: WorkerPool) -> None:
    assert pool.run(2, update_with_a_bad_loss, Layout(DDP)) == [(True, True)] * 2


@pytest.mark.parametrize("name", sampled({"deepspeed_zero2"}, [name for name in ENGINES if "deepspeed" in name]))
@pytest.mark.parametrize("precision", [FP32, pytest.param(BF16, marks=pytest.mark.soak)], ids=lambda p: p.name)
def test_a_loss_alone_is_enough_for_deepspeed(name: str, precision) -> None:
    with another_pool() as pool:
        told = pool.run(2, run_as_torchrun_says, replace(LAYOUT, strategy=ENGINES[name], precision=precision))
    assert told == [(True, True)] * 2


def run_as_torchrun_says(layout: Layout) -> tuple[bool, bool]:
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]
    return update_with_a_bad_loss(layout)


def test_the_bad_step_would_have_moved_everything(pool: WorkerPool) -> None:
    """Else there was nothing to leave out."""
    one, two = (merge([pool.run(1, run_layout, Layout(steps=steps))[0].weights]) for steps in (1, 2))
    unmoved = [name for name in one if np.array_equal(one[name], two[name])]
    assert unmoved == []
