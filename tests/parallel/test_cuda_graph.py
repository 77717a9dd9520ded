"""strategy.cuda_graph: what Python did in the step that was written down is put back in those that are launched.

Graphs are a CPU's here (harness/graphs_on_cpu.py); those of a GPU are in tests/gpu/test_cuda_graph_on_gpu.py.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.graphs_on_cpu import HostWaits, graphs_on_cpu
from harness.layout_run import (
    BF16,
    DDP,
    DOCUMENTS,
    FP32,
    MODEL,
    SINGLE,
    ZERO1,
    Layout,
    Outcome,
    batches_of,
    open_layout,
    run_layout,
    this_world,
)
from harness.worker_pool import WorkerPool

from models.config import ConfigError, ModelConfig
from parallel.check_cuda_graph import check_cuda_graph_device
from parallel.comm import Communicator
from parallel.config import OverlapConfig, Recompute, StrategyConfig
from parallel.expert_parallel.build import RowRoom
from parallel.native_engine import NativeEngine
from parallel.settling import WARM_UP
from train.config import OptimConfig
from train.faults.config import Fault, FaultConfig
from train.faults.injector import Injector
from train.step import OptimizerStep

STEPS = 6
PLAIN = Layout(ZERO1, precision=FP32, steps=STEPS, eval_sequences=8)
THREE = replace(PLAIN, global_batch_size=6, micro_batch_size=2)
HALVES = OptimConfig(one_pass=True, halves=True)
ON = StrategyConfig(cuda_graph=True)
AFTER = OverlapConfig(grad_reduce=False, bucket_mib=0.01)
LOSSES = replace(MODEL.moe, sequence_loss_weight=0.02, z_loss_weight=0.01)
CAPACITY = replace(MODEL, moe=replace(MODEL.moe, capacity_factor=0.9))
CASES = {
    "zero1": (1, PLAIN),
    "ddp": (1, replace(PLAIN, strategy=DDP)),
    "three": (1, THREE),
    "three_single": (1, replace(THREE, strategy=SINGLE)),
    "halves": (1, replace(THREE, precision=BF16, optim=HALVES)),
    "documents": (1, replace(PLAIN, batching=DOCUMENTS, micro_batch_size=4)),
    "router_losses": (1, replace(PLAIN, model=replace(MODEL, moe=LOSSES))),
    "capacity": (1, replace(PLAIN, model=CAPACITY, strategy=replace(ZERO1, rows=RowRoom.static))),
    "recompute": (1, replace(PLAIN, strategy=replace(ZERO1, recompute=Recompute.full))),
    "ddp_on_two": (2, replace(PLAIN, strategy=DDP, overlap=AFTER, micro_batch_size=2)),
    "zero1_on_two": (2, replace(PLAIN, overlap=AFTER, micro_batch_size=2)),
}


def graphed(layout: Layout) -> Layout:
    return replace(layout, strategy=replace(layout.strategy, cuda_graph=True))


def run_graphed(layout: Layout) -> tuple[Outcome, list[int]]:
    """And how often each graph was launched."""
    with graphs_on_cpu() as graphs:
        outcome = run_layout(graphed(layout))
    return outcome, [graph.n_replays for graph in graphs]


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_same_to_the_bit(name: str, pool: WorkerPool) -> None:
    ranks, layout = CASES[name]
    plain = pool.run(ranks, run_layout, layout)
    n_micro_batches = layout.global_batch_size // (layout.micro_batch_size or layout.global_batch_size)
    for (got, n_replays), expected in zip(pool.run(ranks, run_graphed, layout), plain, strict=True):
        assert n_replays == [STEPS - WARM_UP] * (2 * n_micro_batches // ranks)
        for told in ("losses", "evals", "router_losses", "grad_norms", "chosen", "dropped", "routing", "issued"):
            assert getattr(got, told) == getattr(expected, told), told
        for key, piece in (expected.weights | expected.moments).items():
            np.testing.assert_array_equal((got.weights | got.moments)[key].array, piece.array, key)


def whole_after(layout: Layout) -> list[int]:
    """Steps after which masters are whole."""
    whole = []
    with graphs_on_cpu():
        comm = Communicator()
        engine = open_layout(graphed(layout), this_world(), comm)
        assert isinstance(engine, NativeEngine)
        step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, 1.0)
        tokens = batches_of(layout, engine.data)
        for number in range(1, STEPS + 1):
            step(next(tokens), layout.rate)
            whole += [number] * (not any(low.untyped_storage().nbytes() for low in engine._halves.lows.values()))
    return whole


def test_what_a_save_needs_is_had_beside_the_pool_once(pool: WorkerPool) -> None:
    """Where it is not to be had the job ends in that step, and not at its first save."""
    assert pool.run(1, whole_after, CASES["halves"][1]) == [[WARM_UP + 1]]


def losses_of(layout: Layout, spoilt: tuple[int, ...]) -> list[float]:
    """With a loss that is not finite at those steps."""
    comm = Communicator()
    engine = open_layout(layout, this_world(), comm)
    injector = Injector([FaultConfig(Fault.non_finite, step=step) for step in spoilt], 0, 1, Path("/nonexistent"))
    injector._stamp = lambda *args: None  # type: ignore[method-assign]  # there is no folder
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, 1.0, injector=injector)
    tokens = batches_of(layout, engine.data)
    losses = []
    for injector.step in range(1, STEPS + 1):
        losses.append(step(next(tokens), layout.rate).loss.item())
    return losses


def spoilt_and_graphed(layout: Layout, spoilt: tuple[int, ...]) -> tuple[list[float], list[int]]:
    with graphs_on_cpu() as graphs:
        return losses_of(graphed(layout), spoilt), [graph.n_replays for graph in graphs]


@pytest.mark.parametrize(("spoilt", "n_launches"), [((5,), 3), ((2,), 2), ((3, 4), 0)])
def test_a_number_of_the_host_is_a_constant(spoilt: tuple[int, ...], n_launches: int, pool: WorkerPool) -> None:
    """A step that has another one goes as the first ones do, and is not what is written down."""
    (expected,) = pool.run(1, losses_of, PLAIN, spoilt)
    ((losses, n_replays),) = pool.run(1, spoilt_and_graphed, PLAIN, spoilt)
    np.testing.assert_array_equal(losses, expected)
    assert n_replays == [n_launches] * 2 * (n_launches > 0)


def asked(layout: Layout) -> str:
    with graphs_on_cpu(), pytest.raises(HostWaits) as caught:
        run_layout(graphed(layout))
    return str(caught.value)


def test_rows_of_a_capacity_are_asked_for(pool: WorkerPool) -> None:
    """So it is refused (tests/conf/test_refusals.py), and room for all is not."""
    assert "_local_scalar_dense" in pool.run(1, asked, replace(PLAIN, model=CAPACITY))[0]


def test_a_cpu_has_no_graphs() -> None:
    check_device("cuda")
    check_device("cpu", StrategyConfig())
    with pytest.raises(ConfigError, match=r"^strategy\.cuda_graph=true: there are graphs on a GPU, and none on cpu"):
        check_device("cpu")


def check_device(device: str, strategy: StrategyConfig = ON, model: ModelConfig = MODEL) -> None:
    check_cuda_graph_device(model, strategy, BF16, torch.device(device))


def test_experts_that_are_a_loop_are_not_written_down(older_gpu: None) -> None:
    check_device("cuda")  # which GPU it is is not known
    check_device("cuda:0", model=replace(MODEL, n_dense_layers=MODEL.n_layers))
    check_device("cuda:0", StrategyConfig())
    said = (
        r"^strategy\.cuda_graph=true: experts are a loop on An Older GPU \(compute capability 8\.0\), and the host "
        r"waits for how many rows each has; set it to false$"
    )
    with pytest.raises(ConfigError, match=said):
        check_device("cuda:0")
