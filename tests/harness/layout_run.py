"""A few optimizer steps of one layout, in the calling rank, and all that a parity test compares: losses, gradients,
weights. The reference is the same function on one rank."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch

from launch.verify.pieces import Piece, merge, pieces
from models.config import AttentionConfig, AttentionKind, ModelConfig, MoEConfig, ScoreFunction
from parallel.comm import Communicator, Issued
from parallel.comm_kind import CommKind
from parallel.config import Dtype, EngineName, OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.engine import Engine
from parallel.mesh import Axis, Degrees
from parallel.open_engine import open_engine
from parallel.parallelize import ParallelModel, parallelize
from parallel.traffic.meter import TrafficMeter
from parallel.traffic.tally import Traffic
from parallel.world import World
from train.batch import BatchMaker
from train.config import OptimConfig, TrainConfig
from train.data.loader import BatchLoader
from train.data.source import Corpus
from train.data.synthetic import open_synthetic
from train.evaluate import evaluate
from train.metrics.routing import routing_row
from train.optimizer import build_optimizer
from train.step import OptimizerStep, StepResult

GQA = AttentionConfig(kind=AttentionKind.gqa, n_heads=4, n_kv_heads=2, head_dim=8)
MLA = AttentionConfig(
    kind=AttentionKind.mla, n_heads=4, q_lora_rank=12, kv_lora_rank=16, qk_nope_dim=8, qk_rope_dim=4, v_dim=8
)
MODEL = ModelConfig(
    vocab_size=64,
    dim=32,
    n_layers=3,
    n_dense_layers=1,
    dense_dim=48,
    max_sequence_length=16,
    attention=GQA,
    moe=MoEConfig(n_routed=6, top_k=2, n_shared=1, expert_dim=16, bias_update_rate=0.01),
)
MODEL_MLA_SOFTMAX = replace(
    MODEL, attention=MLA, moe=replace(MODEL.moe, score=ScoreFunction.softmax, normalise_weights=False, n_shared=2)
)
MODEL_ALL_OPTIONS = replace(
    MODEL,
    vocab_size=16,
    loss_chunk_size=7,
    attention=replace(GQA, rope_fraction=0.5, qk_norm=True, bias=True),
    moe=replace(
        MODEL.moe,
        n_groups=3,
        groups_per_token=2,
        capacity_factor=0.9,
        sequence_loss_weight=0.02,
        batch_loss_weight=0.03,
        z_loss_weight=0.01,
    ),
)
DOCUMENTS = BatchMaker(separator=3, split_attention=True)
FP64 = PrecisionConfig("fp64", Dtype.float64, Dtype.float64, Dtype.float64)
FP32 = PrecisionConfig("fp32", Dtype.float32, Dtype.float32, Dtype.float32)
BF16 = PrecisionConfig("bf16", Dtype.float32, Dtype.bfloat16, Dtype.float32)
SINGLE = StrategyConfig("single", Reduction.none)
DDP = StrategyConfig("ddp", Reduction.all_reduce, dp_replicate=-1)
ZERO1 = StrategyConfig("zero1", Reduction.shard_optimizer, dp_replicate=-1)
FSDP = StrategyConfig("fsdp", Reduction.shard, dp_shard=-1)
ENGINES = {
    "accelerate_ddp": replace(DDP, engine=EngineName.accelerate),
    "deepspeed_zero1": replace(ZERO1, engine=EngineName.deepspeed),
    "deepspeed_zero2": replace(ZERO1, engine=EngineName.deepspeed, reduction=Reduction.shard_gradients),
    "deepspeed_zero3": replace(FSDP, engine=EngineName.deepspeed),
}
"""Those that run on CPU."""
HSDP = StrategyConfig("hsdp", Reduction.shard, dp_replicate=2, dp_shard=-1)


@dataclass(frozen=True)
class Layout:
    """What to run."""

    strategy: StrategyConfig = field(default_factory=lambda: SINGLE)
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    precision: PrecisionConfig = field(default_factory=lambda: FP64)
    model: ModelConfig = field(default_factory=lambda: MODEL)
    global_batch_size: int = 8
    micro_batch_size: int | None = None
    steps: int = 3
    rate: float = 1e-2
    clip_norm: float | None = 1.0
    eval_sequences: int = 16
    batching: BatchMaker = field(default_factory=lambda: BatchMaker(None, split_attention=False))
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass
class Outcome:
    """What came of it, of this rank: arrays by logical name."""

    losses: list[float]
    evals: list[float]
    router_losses: list[float]
    chosen: list[list[list[float]]]
    """(token, expert) pairs of all ranks, by step, MoE layer and expert."""
    dropped: list[float]
    """Pairs beyond an expert's capacity, of all ranks and layers, by step."""
    routing: list[dict[str, float]]
    """What is logged of it, by step."""
    grad_norms: list[float]
    first_gradients: dict[str, Piece]
    weights: dict[str, Piece]
    moments: dict[str, Piece]
    calls: dict[tuple[CommKind, str], int]
    """Collectives of ours over all steps."""
    issued: dict[Issued, int]
    """The same with group and bytes."""
    waits: dict[CommKind, int]
    """Those that were waited for, by kind."""
    traffic: Traffic
    """All that this rank said in the last step, FSDP2's collectives too."""


CPU = torch.device("cpu")


def this_world(device: torch.device = CPU) -> World:
    """The calling rank, where a process group runs already."""
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def train_config(layout: Layout) -> TrainConfig:
    """Its batch."""
    return TrainConfig(
        global_batch_size=layout.global_batch_size,
        micro_batch_size=layout.micro_batch_size,
        eval_sequences=layout.eval_sequences,
    )


def lay_out(layout: Layout, world: World, comm: Communicator, seed: int = 1) -> tuple[ParallelModel, TrainConfig]:
    """Its model over the running process group, natively."""
    train = train_config(layout)
    degrees = Degrees.resolve(layout.strategy, world.size)
    parallel = parallelize(
        layout.model,
        layout.strategy,
        layout.overlap,
        layout.precision,
        world,
        comm,
        seed=seed,
        n_micro_batches=train.micro_batches(degrees.dp, degrees.pp),
        sequence_length=layout.model.max_sequence_length,
    )
    return parallel, train


def open_layout(layout: Layout, world: World, comm: Communicator, seed: int = 1) -> Engine:
    """Its engine over the running process group."""
    degrees = Degrees.resolve(layout.strategy, world.size)
    return open_engine(
        layout.model,
        layout.strategy,
        layout.overlap,
        layout.precision,
        world,
        comm,
        seed=seed,
        n_micro_batches=train_config(layout).micro_batches(degrees.dp, degrees.pp),
        sequence_length=layout.model.max_sequence_length,
        make_optimizer=partial(build_optimizer, optim=layout.optim),
    )


def run_layout(layout: Layout, device: torch.device = CPU) -> Outcome:
    """Train `layout` on synthetic tokens over the running process group."""
    world, comm = this_world(device), Communicator()
    train = train_config(layout)
    degrees = Degrees.resolve(layout.strategy, world.size)
    pp = degrees.pp
    engine = open_layout(layout, world, comm)
    data = engine.data
    corpus = corpus_of(layout)
    loader = batches_of(layout, data, device=device)
    first_gradients: dict[str, Piece] = {}

    def keep_first(engine: Engine) -> None:
        if not first_gradients:
            first_gradients.update(pieces(engine.gradients()))

    step = OptimizerStep(
        engine, comm, layout.batching, train.global_batch_size, layout.clip_norm, before_update=keep_first
    )
    results: list[StepResult] = []
    evals: list[float] = []
    traffic = Traffic()
    comm.issued.clear()
    for index in range(layout.steps):
        with TrafficMeter(comm) as meter:
            results.append(step(next(loader), rate=layout.rate))
        traffic = meter.traffic
        # Between steps, where a gathered parameter that stays gathered would spoil the next one.
        if index % 2 == 0:
            sequences, micro_batch = train.eval_sequences, train.eval_micro_batch(data.size, pp)
            evals.append(evaluate(engine, corpus.heldout, layout.batching, sequences, micro_batch, comm, world.device))
    return Outcome(
        losses=[result.loss.item() for result in results],
        evals=evals,
        router_losses=[result.router_loss.item() for result in results],
        chosen=[result.routing.chosen_LE.tolist() for result in results],
        dropped=[result.routing.dropped_LE.sum().item() for result in results],
        routing=[routing_row(result.routing, layout.model.moe, engine.placement) for result in results],
        grad_norms=[result.grad_norm.item() for result in results],
        first_gradients=first_gradients,
        weights=pieces(engine.weights()),
        moments=pieces(engine.moments()),
        calls=dict(comm.calls),
        issued=dict(comm.issued),
        waits=dict(comm.waits),
        traffic=traffic,
    )


def corpus_of(layout: Layout) -> Corpus:
    """Its tokens."""
    return open_synthetic(layout.model.max_sequence_length, layout.model.vocab_size, seed=1)


def batches_of(layout: Layout, data: Axis, start_step: int = 0, device: torch.device = CPU) -> BatchLoader:
    """This rank's micro-batches of each step."""
    pp = Degrees.resolve(layout.strategy, torch.distributed.get_world_size()).pp
    return BatchLoader(
        stream=corpus_of(layout).train,
        global_batch_size=layout.global_batch_size,
        micro_batch_size=train_config(layout).micro_batch(data.size, pp),
        dp_rank=data.rank,
        dp_size=data.size,
        start_step=start_step,
        prefetch=0,
        device=device,
    )


def assert_routed_alike(outcome: Outcome, reference: Outcome, tolerance: float) -> None:
    """The same is logged of the routing of every step; `reference` is of one process, which has no ranks to load."""
    for row, expected in zip(outcome.routing, reference.routing, strict=True):
        of_all = {name: value for name, value in row.items() if name != "moe/rank_load_max_over_mean"}
        assert of_all == pytest.approx(expected, rel=0, abs=tolerance)


def merged(outcomes: list[Outcome]) -> dict[str, np.ndarray]:
    """The weights of all ranks."""
    return merge([outcome.weights for outcome in outcomes])


def merged_gradients(outcomes: list[Outcome]) -> dict[str, np.ndarray]:
    """The first step's gradients of all ranks."""
    return merge([outcome.first_gradients for outcome in outcomes])
