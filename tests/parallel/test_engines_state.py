"""What an engine of another library starts from, and what it gives and takes as a checkpoint.

Not in the session's pool, as tests/parallel/test_engines.py.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from harness.engine_run import LAYOUT, another_pool, as_if_on_gpus, forget_group, run_engine, sampled
from harness.layout_run import (
    BF16,
    DDP,
    ENGINES,
    FP32,
    FP64,
    FSDP,
    Layout,
    batches_of,
    merged,
    open_layout,
    run_layout,
    this_world,
)
from harness.worker_pool import WorkerPool

from launch.verify.pieces import Piece, merge, pieces
from parallel.comm import Communicator
from parallel.config import EngineName
from train.checkpoint.manifest import Progress
from train.checkpoint.store import CheckpointStore
from train.step import OptimizerStep


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with another_pool() as pool:
        yield pool


# One leg of a job: its layout, and the step it goes on to.
Leg = tuple[Layout, int]


def run_legs(folder: Path, legs: list[Leg]) -> list[tuple[list[float], dict[str, Piece], dict[str, Piece]]]:
    """One after another in `folder`, each from the checkpoint of the one before: of each the losses, the state that it
    began with, and the one that it saved."""
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]
    told = []
    for layout, until in legs:
        world, comm = this_world(), Communicator()
        engine = open_layout(layout, world, comm, seed=len(told))
        store = CheckpointStore(folder, comm, behind=True)
        progress = store.resume(engine).progress
        began = pieces(engine.weights() | engine.moments())
        step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
        batches = batches_of(layout, engine.data, progress.step)
        losses = [step(next(batches), rate=1e-2).loss.item() for _ in range(progress.step, until)]
        store.save(engine, Progress(until, 0), keep=0)
        store.finish()
        told.append((losses, began, pieces(engine.weights() | engine.moments())))
    forget_group(*(layout.strategy for layout, _ in legs))
    return told


def whole_state(told_by_rank: list, leg: int, which: int) -> dict[str, np.ndarray]:
    return merge([told[leg][which] for told in told_by_rank])


def test_state_passes_between_engines_to_the_bit(pool: WorkerPool, tmp_path: Path) -> None:
    """Weights, both moments and biases; and the losses go on as in one engine."""
    chain = [FSDP, ENGINES["deepspeed_zero2"], DDP, ENGINES["deepspeed_zero3"], ENGINES["accelerate_ddp"]]
    chain += [ENGINES["deepspeed_zero1"], FSDP]
    legs = [(replace(LAYOUT, strategy=strategy), until) for until, strategy in enumerate(chain, start=1)]
    told = pool.run(2, run_legs, tmp_path / "chain", legs)
    for leg in range(1, len(legs)):
        before, after = whole_state(told, leg - 1, 2), whole_state(told, leg, 1)
        assert after.keys() == before.keys()
        for key, array in before.items():
            np.testing.assert_array_equal(after[key], array, err_msg=f"{chain[leg]} {key}")
    alone = pool.run(2, run_legs, tmp_path / "alone", [(replace(LAYOUT, strategy=DDP), len(chain))])
    in_chain = [loss for losses, *_ in told[0] for loss in losses]
    np.testing.assert_allclose(in_chain, alone[0][0][0], rtol=0, atol=2e-5)


PRECISIONS = {"fp32": FP32, "bf16": BF16}
RESUMED = {("accelerate_ddp", "fp32"), ("deepspeed_zero1", "bf16"), ("deepspeed_zero3", "fp32")}


@pytest.mark.parametrize(("name", "precision"), sampled(RESUMED, product(ENGINES, PRECISIONS)))
def test_an_engine_resumes_to_the_bit(name: str, precision: str, pool: WorkerPool, tmp_path: Path) -> None:
    layout = replace(LAYOUT, strategy=ENGINES[name], precision=PRECISIONS[precision])
    whole = pool.run(2, run_legs, tmp_path / "whole", [(layout, 4)])
    parts = pool.run(2, run_legs, tmp_path / "parts", [(layout, 2), (layout, 4)])
    assert parts[0][0][0] + parts[0][1][0] == whole[0][0][0]
    expected, got = whole_state(whole, 0, 2), whole_state(parts, 1, 2)
    for key, array in expected.items():
        np.testing.assert_array_equal(got[key], array, err_msg=key)


@pytest.mark.parametrize("name", sampled({"deepspeed_zero1", "deepspeed_zero3"}, ENGINES))
def test_an_engine_starts_from_the_same_bits(name: str, pool: WorkerPool) -> None:
    """Masters too, where the network computes in bfloat16."""
    layout = replace(LAYOUT, precision=BF16, steps=0)
    expected = merged(pool.run(1, run_layout, layout))
    got = merged(pool.run(2, run_engine, replace(layout, strategy=ENGINES[name])))
    assert got.keys() == expected.keys()
    for key, weight in expected.items():
        np.testing.assert_array_equal(got[key], weight, err_msg=key)


def run_legs_of_accelerate(folder: Path, legs: list[Leg]) -> list:
    with as_if_on_gpus():
        return run_legs(folder, legs)


def test_fsdp_of_accelerate_resumes_if_it_ran_on_cpu(tmp_path: Path) -> None:
    """To the bit; and from a native layout's state."""
    layout = replace(LAYOUT, precision=FP64, strategy=replace(FSDP, engine=EngineName.accelerate))
    with another_pool() as pool:
        whole = pool.run(2, run_legs_of_accelerate, tmp_path / "whole", [(layout, 4)])
        parts = pool.run(2, run_legs_of_accelerate, tmp_path / "parts", [(layout, 2), (layout, 4)])
        native = [(replace(layout, strategy=DDP), 2), (layout, 4)]
        mixed = pool.run(2, run_legs_of_accelerate, tmp_path / "mixed", native)
    assert parts[0][0][0] + parts[0][1][0] == whole[0][0][0]
    np.testing.assert_allclose(mixed[0][0][0] + mixed[0][1][0], whole[0][0][0], rtol=0, atol=1e-12)
    for key, array in whole_state(whole, 0, 2).items():
        np.testing.assert_array_equal(whole_state(parts, 1, 2)[key], array, err_msg=key)
