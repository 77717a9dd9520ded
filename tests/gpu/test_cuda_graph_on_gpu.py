"""strategy.cuda_graph: steps that are launched as graphs are the same, and the host launches one graph an action.

Attention by torch's operators adds in a fixed order, as all else does: what two runs without graphs have to the bit,
one with graphs has too. Where they differ, it is as near as they are.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from harness.layout_run import (
    BF16,
    DDP,
    DOCUMENTS,
    FP32,
    FP64,
    GQA,
    MLA,
    MODEL,
    SINGLE,
    ZERO1,
    Layout,
    Outcome,
    batches_of,
    corpus_of,
    open_layout,
    run_layout,
    train_config,
)
from harness.torchrun import torchrun
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile

from launch.verify.pieces import merge, pieces
from parallel.comm import Communicator
from parallel.config import Matmul, Recompute
from parallel.engine import Engine
from parallel.expert_parallel.build import RowRoom
from parallel.world import Launch, World
from train.config import Moments, OptimConfig
from train.evaluate import evaluate
from train.faults.config import Fault, FaultConfig
from train.faults.injector import Injector
from train.step import OptimizerStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

STEPS = 8
TINY = replace(
    MODEL,
    vocab_size=256,
    dim=64,
    dense_dim=128,
    max_sequence_length=128,
    attention=replace(GQA, head_dim=16),
    moe=replace(MODEL.moe, n_routed=8, expert_dim=32),
)
SMALL = replace(
    TINY, dim=128, dense_dim=384, attention=replace(GQA, head_dim=32), moe=replace(TINY.moe, expert_dim=128)
)
LATENT = replace(
    TINY, attention=replace(MLA, q_lora_rank=32, kv_lora_rank=32, qk_nope_dim=16, qk_rope_dim=16, v_dim=16)
)
DENSE = replace(TINY, n_dense_layers=TINY.n_layers)
LOSSES = replace(TINY, moe=replace(TINY.moe, sequence_loss_weight=0.02, z_loss_weight=0.01))
CAPACITY = replace(TINY, moe=replace(TINY.moe, capacity_factor=0.9))
ONE_PASS = OptimConfig(one_pass=True)
PLAIN = Layout(ZERO1, precision=BF16, model=TINY, steps=STEPS)
COMPILED = replace(PLAIN, strategy=replace(ZERO1, compile=True), optim=ONE_PASS)
CASES = {
    "zero1": PLAIN,
    "single": replace(PLAIN, strategy=SINGLE),
    "ddp": replace(PLAIN, strategy=DDP),
    "one_pass": replace(PLAIN, optim=ONE_PASS),
    "compiled": COMPILED,
    "compiled_ddp": replace(COMPILED, strategy=replace(DDP, compile=True)),
    "small": replace(COMPILED, model=SMALL),
    "moments": replace(COMPILED, optim=replace(ONE_PASS, moments=Moments.bfloat16)),
    "halves": replace(COMPILED, optim=replace(ONE_PASS, halves=True)),
    "three": replace(PLAIN, global_batch_size=6, micro_batch_size=2),
    "three_single": replace(PLAIN, strategy=SINGLE, global_batch_size=6, micro_batch_size=2),
    "three_compiled": replace(COMPILED, global_batch_size=6, micro_batch_size=2),
    "three_halves": replace(COMPILED, global_batch_size=6, micro_batch_size=2, optim=replace(ONE_PASS, halves=True)),
    "recompute": replace(PLAIN, strategy=replace(ZERO1, recompute=Recompute.full)),
    "recompute_compiled": replace(COMPILED, strategy=replace(ZERO1, recompute=Recompute.full, compile=True)),
    "selective": replace(PLAIN, strategy=replace(ZERO1, recompute=Recompute.selective)),
    "latent": replace(PLAIN, model=LATENT),
    "documents": replace(PLAIN, batching=DOCUMENTS, micro_batch_size=4),
    "router_losses": replace(PLAIN, model=LOSSES),
    "capacity": replace(PLAIN, model=CAPACITY, strategy=replace(ZERO1, rows=RowRoom.static)),
    "fp8": replace(COMPILED, precision=replace(BF16, matmul=Matmul.fp8)),
    "float32": replace(PLAIN, model=DENSE, precision=FP32),
    "float64": replace(PLAIN, model=DENSE, precision=FP64, strategy=SINGLE),
}
TOLD = ("losses", "evals", "router_losses", "grad_norms", "chosen", "dropped")
CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World.join(Launch(0, 1, 0, 1, launched=False), CUDA, dist.HashStore())
    yield world
    world.leave()


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.attention.KERNELS_BY_SPEED", [SDPBackend.MATH])
    torch.compiler.reset()


def graphed(layout: Layout) -> Layout:
    return replace(layout, strategy=replace(layout.strategy, cuda_graph=True))


def numbers(outcome: Outcome) -> dict[str, np.ndarray]:
    told = {name: np.array(getattr(outcome, name)) for name in TOLD}
    routing = {f"routing/{name}": np.array([row[name] for row in outcome.routing]) for name in outcome.routing[0]}
    return told | routing | merge([outcome.weights | outcome.moments])


def apart(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    return {name: float(np.abs(ours[name] - theirs[name]).max(initial=0.0)) for name in ours}


def assert_as_near(got: dict[str, np.ndarray], plain: dict[str, np.ndarray], again: dict[str, np.ndarray]) -> None:
    """To the bit, where `plain` and `again` are; else as near as what is of the same kind there."""
    assert all(np.isfinite(value).all() for value in plain.values())
    spread: dict[str, float] = {}
    for name, value in apart(plain, again).items():
        spread[kind(name)] = max(spread.get(kind(name), 0.0), value)
    off = apart(plain, got)
    assert {name: value for name, value in off.items() if not value <= 3 * spread[kind(name)]} == {}, spread


def kind(name: str) -> str:
    """Losses, norms, one of routing's numbers; weights, or one of both moments."""
    return (
        name if name in TOLD or "/" in name else ".".join(name.split(".")[: 2 if name.startswith("optimizer") else 1])
    )


@pytest.mark.parametrize("name", CASES)
def test_the_same_steps(name: str, world: World) -> None:
    plain, again, ours = (run_layout(layout, CUDA) for layout in (CASES[name], CASES[name], graphed(CASES[name])))
    assert_as_near(*map(numbers, (ours, plain, again)))
    assert ours.issued == plain.issued


def run_disturbed(layout: Layout, world: World) -> dict[str, np.ndarray]:
    """Through a loss that is spoilt, gradients that are, evaluations, and steps that are taken back; then the state is
    carried into another engine, and both go on."""
    comm = Communicator()
    told: dict[str, np.ndarray] = {}
    engine = open_layout(layout, world, comm)
    injector = Injector([FaultConfig(Fault.non_finite, step=5)], 0, 1, Path("/nonexistent"))
    injector._stamp = lambda *args: None  # type: ignore[method-assign]  # there is no folder

    def before_update(engine: Engine) -> None:
        if injector.step == 6:
            for shard in engine.gradients().values():
                shard.local.fill_(torch.nan)

    def go(engine: Engine, first: int, last: int, label: str) -> None:
        size = layout.global_batch_size
        step = OptimizerStep(engine, comm, layout.batching, size, 1.0, before_update, injector=injector)
        loader = batches_of(layout, engine.data, first - 1, CUDA)
        for injector.step in range(first, last + 1):
            result = step(next(loader), layout.rate)
            numbers = [result.loss, result.grad_norm, result.left_out, *result.routing.pack().flatten()]
            told[f"{label}/{injector.step}"] = np.array([number.item() for number in numbers])
            if injector.step % 3 == 0:
                held_out = corpus_of(layout).heldout
                told[f"{label}/eval/{injector.step}"] = np.array(
                    evaluate(engine, held_out, layout.batching, 16, 4, comm, CUDA)
                )

    def state(engine: Engine) -> dict[str, torch.Tensor]:
        return {n: shard.local.detach().clone() for n, shard in (engine.weights() | engine.moments()).items()}

    def fill(engine: Engine, kept: dict[str, torch.Tensor], updates_done: int) -> None:
        shards = engine.weights() | engine.moments()
        with torch.no_grad():
            for name, tensor in kept.items():
                shards[name].local.copy_(tensor)
        engine.take_state(shards, updates_done)

    go(engine, 1, 7, "first")
    assert [told[f"first/{step}"][2] for step in range(1, 8)] == [0, 0, 0, 0, 1, 1, 0]
    kept = state(engine)
    go(engine, 8, 9, "ahead")
    fill(engine, kept, 5)
    go(engine, 8, 9, "back")
    for step in (8, 9):
        np.testing.assert_array_equal(told[f"back/{step}"], told[f"ahead/{step}"])
    other = open_layout(layout, world, comm, seed=9)
    fill(other, kept, 5)
    go(other, 8, 13, "other")
    go(engine, 10, 13, "on")
    of_other = {f"other/{name}": array for name, array in merge([pieces(other.weights())]).items()}
    return told | merge([pieces(engine.weights())]) | of_other


@pytest.mark.parametrize("name", ["zero1", "three_single", "three_halves"])
def test_what_disturbs_a_job_disturbs_no_graph(name: str, world: World) -> None:
    layouts = (graphed(CASES[name]), CASES[name], CASES[name])
    ours, plain, again = (
        {key: np.nan_to_num(value, nan=-1.0) for key, value in run_disturbed(layout, world).items()}
        for layout in layouts
    )
    assert_as_near(ours, plain, again)


def launched(layout: Layout, world: World) -> tuple[Counter[str], set[str], int]:
    """By the host in the sixth step's forward and backward, by name; the kernels that ran; and micro-batches."""
    comm = Communicator()
    engine = open_layout(layout, world, comm)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, 1.0)
    loader = batches_of(layout, engine.data, device=CUDA)
    for _ in range(5):
        step(next(loader), layout.rate)
    within: list[profile] = []
    plain = engine.forward_backward

    def profiled(*args: object) -> torch.Tensor:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            losses = plain(*args)  # type: ignore[arg-type]
            torch.cuda.synchronize()
        within.append(profiler)
        return losses

    engine.forward_backward = profiled  # type: ignore[assignment, method-assign]
    step(next(loader), layout.rate)
    events = within[0].events()
    assert events is not None
    on_device = {e.name for e in events if e.device_type is torch.autograd.DeviceType.CUDA}
    train = train_config(layout)
    return Counter(e.name for e in events), on_device, train.micro_batches(1, 1)


@pytest.mark.parametrize("name", ["compiled", "three_compiled", "three"])
def test_the_host_launches_a_graph_an_action(name: str, world: World) -> None:
    _, kernels, _ = launched(CASES[name], world)
    calls, in_graphs, n_micro_batches = launched(graphed(CASES[name]), world)
    assert calls["cudaGraphLaunch"] == 2 * n_micro_batches
    others = sum(n for call, n in calls.items() if call.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    assert others <= 2 * n_micro_batches + 4  # inputs are copied, losses zeroed and copied
    assert {name for name in kernels if name.startswith("triton_")} <= in_graphs
    assert {name for name in kernels if "rows_" in name or "swiglu" in name} <= in_graphs


def test_nobody_waits_for_the_device(world: World) -> None:
    layout, comm = graphed(COMPILED), Communicator()
    engine = open_layout(layout, world, comm)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, 1.0)
    loader = batches_of(layout, engine.data, device=CUDA)
    for _ in range(4):
        step(next(loader), layout.rate)
    tokens = [next(loader) for _ in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for tokens_MBS in tokens:
            step(tokens_MBS, layout.rate)
    finally:
        torch.cuda.set_sync_debug_mode("default")


JOB = (
    "model=tiny",
    "precision=bf16",
    "strategy=zero1",
    "optim.one_pass=true",
    "optim.schedule=constant",
    "train.steps=12",
    "train.log_every=1",
    "train.eval_sequences=4",
    "train.eval_every=5",
    "logging=off",
)


def rows(nproc: int, folder: Path, *words: str) -> list[dict[str, float]]:
    done = torchrun(nproc, *JOB, *words, f"run.dir={folder}", timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in read if "train/loss" in row]  # the last one has the books alone


def test_a_job_with_all_around_it(tmp_path: Path) -> None:
    """Batches are pinned in a thread while graphs are made; checkpoints are written behind them; a step is traced."""
    graph = ("strategy.cuda_graph=true", "strategy.compile=true", "measure.counts=true")
    plain = rows(1, tmp_path / "plain", "strategy.compile=true", "checkpoint=off")
    parts = rows(1, tmp_path / "parts", *graph, "checkpoint.every=2", "train.steps=6")
    both = rows(1, tmp_path / "parts", *graph, "checkpoint.every=2", "measure.trace_every=11", "measure.nvtx=true")
    assert both[:6] == parts
    # Kernels of attention's backward add in no fixed order.
    assert [row["train/loss"] for row in both] == pytest.approx([row["train/loss"] for row in plain], abs=5e-3)
    assert all(row["moe/router_entropy"] > 0 for row in both)
    (path,) = (tmp_path / "parts" / "traces").rglob("rank-0.summary.json")
    summary = json.loads(path.read_text())
    by_category = summary["launched_by_category"]
    assert {"expert_gemm", "dense_gemm", "permutation", "optimizer"} <= by_category.keys()
    assert summary["unknown_kinds_s"] == {}


@TWO
@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_replicas_that_reduce_after_backward(strategy: str, tmp_path: Path) -> None:
    words = (f"strategy={strategy}", "overlap.grad_reduce=false", "checkpoint=off", "recovery.check_replicas_every=1")
    for micro in ((), ("train.micro_batch_size=1",)):
        plain = rows(2, tmp_path / f"plain{len(micro)}", *words, *micro)
        ours = rows(2, tmp_path / f"ours{len(micro)}", *words, *micro, "strategy.cuda_graph=true")
        assert [row["train/loss"] for row in ours] == pytest.approx([row["train/loss"] for row in plain], abs=5e-3)
