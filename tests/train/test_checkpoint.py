"""Checkpoints by logical name: bit-equal in the same layout, whole in another, atomic."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.layout_run import DDP, FSDP, HSDP, SINGLE, ZERO1, Layout, lay_out
from harness.worker_pool import WorkerPool

from launch.verify.pieces import Piece, merge, pieces
from parallel.comm import Communicator
from parallel.config import Reduction, StrategyConfig
from parallel.expert_parallel.build import PlacementName
from parallel.native_engine import NativeEngine
from parallel.pipeline.schedules import ScheduleName
from parallel.world import World
from train.checkpoint.folder import committed, newest_checkpoint
from train.checkpoint.manifest import Progress
from train.checkpoint.store import CheckpointStore
from train.config import OptimConfig
from train.optimizer import build_optimizer


def build(strategy: StrategyConfig, seed: int) -> tuple[NativeEngine, list[torch.optim.Optimizer], Communicator]:
    """The engine, and the optimizer that it made."""
    world = World(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))
    comm = Communicator()
    parallel, _ = lay_out(Layout(strategy, global_batch_size=24), world, comm, seed)
    optimizers = []

    def make(parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizers.append(build_optimizer(parameters, OptimConfig()))
        return optimizers[-1]

    return NativeEngine(parallel, make, comm, torch.float64), optimizers, comm


def arrays(engine: NativeEngine) -> dict[str, Piece]:
    return pieces(engine.weights() | engine.moments())


def save(strategy: StrategyConfig, folder: Path, step: int = 7, keep: int = 0) -> dict[str, Piece]:
    """Save a state that differs in every tensor, and tell what it was."""
    engine, _, comm = build(strategy, seed=step)
    weights, moments = engine.weights(), engine.moments()
    for name, shard in weights.items():
        if name.endswith("expert_bias_E"):
            shard.local.add_(torch.arange(len(shard.local)) + step)
        else:
            for moment, factor in (("exp_avg", 2.0), ("exp_avg_sq", 3.0)):
                moments[name.replace("model.", f"optimizer.{moment}.", 1)].local.copy_(shard.local * factor)
    store = CheckpointStore(folder, comm, behind=True)
    store.save(engine, Progress(step, 100 * step), keep)
    store.finish()
    return arrays(engine)


def resume(strategy: StrategyConfig, folder: Path) -> tuple[Progress, dict[str, Piece], set[float]]:
    engine, (optimizer,), comm = build(strategy, seed=99)
    store = CheckpointStore(folder, comm, behind=True)
    progress = store.resume(engine).progress
    return progress, arrays(engine), {state["step"].item() for state in optimizer.state.values()}


EP = StrategyConfig("ep", Reduction.all_reduce, dp_replicate=-1, ep=-1)
FSDP_EP = StrategyConfig("fsdp_ep", Reduction.shard, dp_shard=-1, ep=2)
EP_DEALT = StrategyConfig("ep_dealt", Reduction.all_reduce, dp_replicate=-1, ep=-1, placement=PlacementName.round_robin)
FSDP_EP_DEALT = replace(FSDP_EP, name="fsdp_ep_dealt", placement=PlacementName.round_robin)
TP = StrategyConfig("tp", tp=-1)
ETP = StrategyConfig("etp", tp=2, etp=2)
PP_FSDP = StrategyConfig("pp_fsdp", Reduction.shard, pp=2, dp_shard=-1)
DUALPIPE = StrategyConfig("dualpipe", pp=2, schedule=ScheduleName.dualpipe)


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
        (FSDP, ZERO1, (2, 4)),
        (ZERO1, SINGLE, (2, 1)),
        (EP, FSDP, (3, 2)),
        (FSDP, FSDP_EP, (2, 4)),
        (FSDP_EP, TP, (4, 2)),
        (ETP, PP_FSDP, (2, 4)),
        (DUALPIPE, EP, (2, 2)),
        (TP, DUALPIPE, (2, 2)),
        (EP_DEALT, EP, (3, 2)),
        (EP, FSDP_EP_DEALT, (3, 4)),
        (FSDP_EP_DEALT, EP_DEALT, (4, 3)),
        (EP_DEALT, SINGLE, (2, 1)),
    ],
    ids=lambda v: v.name if isinstance(v, StrategyConfig) else "x".join(map(str, v)),
)
def test_any_layout_reads_any_other(
    saver: StrategyConfig, loader: StrategyConfig, ranks: tuple[int, int], pool: WorkerPool, tmp_path: Path
) -> None:
    saved = merge(pool.run(ranks[0], save, saver, tmp_path))
    outcomes = pool.run(ranks[1], resume, loader, tmp_path)
    loaded = merge([outcome[1] for outcome in outcomes])
    assert loaded.keys() == saved.keys()
    for name, array in saved.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert all(outcome[0] == Progress(7, 700) and outcome[2] == {7.0} for outcome in outcomes)


def test_only_finished_checkpoints_count_and_old_ones_go(pool: WorkerPool, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        pool.run(1, save, SINGLE, tmp_path, step, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert [path.name for path in committed(tmp_path)] == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000009.attempt-0001.tmp").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000003"
    (tmp_path / "step-00000010").mkdir()  # a name without its contents: somebody's copy that broke off
    assert committed(tmp_path)[-1] == tmp_path / "step-00000003"
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000010"  # a resume has to say something about it
    assert newest_checkpoint(tmp_path / "absent") is None


def test_a_resume_clears_what_was_never_finished(pool: WorkerPool, tmp_path: Path) -> None:
    pool.run(1, save, SINGLE, tmp_path)
    (tmp_path / "step-00000003.attempt-0001.tmp").mkdir()
    (tmp_path / "step-00000003.dropped.tmp").mkdir()
    pool.run(1, resume, SINGLE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
