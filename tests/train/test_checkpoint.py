"""Checkpoints by logical name: bit-equal in the same layout, whole in another, atomic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from harness.layout_run import DDP, FP64, FSDP, HSDP, MODEL, SINGLE, merged_arrays, whole
from harness.worker_pool import WorkerFailure, WorkerPool

from parallel.comm import Communicator
from parallel.config import OverlapConfig, StrategyConfig
from parallel.parallelize import ParallelModel, parallelize
from parallel.world import World
from train.checkpoint import CheckpointStore, Progress, committed, newest_checkpoint
from train.config import OptimConfig
from train.logical_state import model_state, optimizer_state
from train.optimizer import build_optimizer


def build(strategy: StrategyConfig, seed: int) -> tuple[ParallelModel, torch.optim.Optimizer, Communicator]:
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))
    comm = Communicator()
    parallel = parallelize(MODEL, strategy, OverlapConfig(), FP64, world, comm, seed)
    return parallel, build_optimizer(list(parallel.parameters.values()), OptimConfig()), comm


def arrays(parallel: ParallelModel, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    state = model_state(parallel.model) | optimizer_state(parallel, optimizer)
    return {name: whole(tensor) for name, tensor in state.items()}


def save(strategy: StrategyConfig, folder: Path, step: int = 7, keep: int = 0) -> dict[str, np.ndarray]:
    """Save a state that differs in every tensor, and tell what it was."""
    parallel, optimizer, comm = build(strategy, seed=step)
    for name, buffer in parallel.model.named_buffers():
        if name.endswith("expert_bias_E"):
            buffer += torch.arange(len(buffer)) + step
    for parameter in parallel.parameters.values():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        state = optimizer.state[parameter]
        for moment, factor in (("exp_avg", 2.0), ("exp_avg_sq", 3.0)):
            moment_local = state[moment].to_local() if hasattr(state[moment], "to_local") else state[moment]
            moment_local.copy_(local.detach() * factor)
    store = CheckpointStore(folder, comm, torch.distributed.get_rank())
    store.save(parallel, optimizer, Progress(step, 100 * step), keep)
    return arrays(parallel, optimizer)


def resume(strategy: StrategyConfig, folder: Path) -> tuple[Progress, dict[str, np.ndarray], set[float]]:
    parallel, optimizer, comm = build(strategy, seed=99)
    store = CheckpointStore(folder, comm, torch.distributed.get_rank())
    progress = store.resume(parallel, optimizer)
    return progress, arrays(parallel, optimizer), {state["step"].item() for state in optimizer.state.values()}


@pytest.mark.parametrize(
    ("saver", "loader", "ranks"),
    [
        (SINGLE, SINGLE, (1, 1)),
        (SINGLE, FSDP, (1, 4)),
        (FSDP, FSDP, (2, 2)),
        (FSDP, DDP, (4, 2)),
        (DDP, FSDP, (2, 2)),
        (HSDP, SINGLE, (4, 1)),
        (SINGLE, HSDP, (1, 4)),
    ],
    ids=lambda v: v.name if isinstance(v, StrategyConfig) else "x".join(map(str, v)),
)
def test_any_layout_reads_any_other(
    saver: StrategyConfig, loader: StrategyConfig, ranks: tuple[int, int], pool: WorkerPool, tmp_path: Path
) -> None:
    saved = merged_arrays(pool.run(ranks[0], save, saver, tmp_path))
    outcomes = pool.run(ranks[1], resume, loader, tmp_path)
    loaded = merged_arrays([outcome[1] for outcome in outcomes])
    assert loaded.keys() == saved.keys()
    for name, array in saved.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert all(outcome[0] == Progress(7, 700) and outcome[2] == {7.0} for outcome in outcomes)


def test_only_finished_checkpoints_count_and_old_ones_go(pool: WorkerPool, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        pool.run(1, save, SINGLE, tmp_path, step, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert [path.name for path in committed(tmp_path)] == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000009.tmp").mkdir()
    (tmp_path / "step-00000010").mkdir()  # a name without its contents: somebody's copy that broke off
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step-00000003"
    assert newest_checkpoint(tmp_path / "absent") is None


def test_a_resume_clears_what_was_never_finished(pool: WorkerPool, tmp_path: Path) -> None:
    pool.run(1, save, SINGLE, tmp_path)
    (tmp_path / "step-00000003.tmp").mkdir()
    pool.run(1, resume, SINGLE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def fail_to_save(folder: Path) -> None:
    parallel, optimizer, comm = build(SINGLE, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        store = CheckpointStore(folder, comm, 0)
        store.save(parallel, optimizer, Progress(8, 800), keep=1)


def test_a_save_that_fails_leaves_the_previous_one(pool: WorkerPool, tmp_path: Path) -> None:
    pool.run(1, save, SINGLE, tmp_path)
    with pytest.raises(WorkerFailure, match="no space left"):
        pool.run(1, fail_to_save, tmp_path)
    assert [path.name for path in committed(tmp_path)] == ["step-00000007"]
