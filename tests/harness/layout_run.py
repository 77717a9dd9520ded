"""A few optimizer steps of one layout, in the calling rank, and all that a parity test compares: losses, gradients,
weights. The reference is the same function on one rank."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from models.config import AttentionConfig, AttentionKind, ModelConfig, MoEConfig, ScoreFunction
from parallel.comm import CommKind, Communicator
from parallel.config import Dtype, OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.parallelize import ParallelModel, parallelize
from parallel.world import World
from train.batch import BatchMaker
from train.config import OptimConfig, TrainConfig
from train.data.loader import BatchLoader
from train.data.synthetic import open_synthetic
from train.evaluate import evaluate
from train.logical_state import model_state
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
SINGLE = StrategyConfig("single", Reduction.none, 1, 1)
DDP = StrategyConfig("ddp", Reduction.all_reduce, -1, 1)
FSDP = StrategyConfig("fsdp", Reduction.shard, 1, -1)
HSDP = StrategyConfig("hsdp", Reduction.shard, 2, -1)


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
    batching: BatchMaker = field(default_factory=lambda: BatchMaker(None, split_attention=False))


@dataclass
class Outcome:
    """What came of it, of this rank: arrays by logical name."""

    losses: list[float]
    evals: list[float]
    router_losses: list[float]
    dropped: list[float]
    """Pairs beyond an expert's capacity, of all ranks and layers, by step."""
    grad_norms: list[float]
    first_gradients: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    calls: dict[tuple[CommKind, str], int]
    """Collectives of ours over all steps."""
    waits: dict[CommKind, int]
    """Those that were waited for, by kind."""


def run_layout(layout: Layout) -> Outcome:
    """Train `layout` on synthetic tokens over the running process group."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    world, comm = World(rank, size, torch.device("cpu")), Communicator()
    parallel = parallelize(layout.model, layout.strategy, layout.overlap, layout.precision, world, comm, seed=1)
    train = TrainConfig(global_batch_size=layout.global_batch_size, micro_batch_size=layout.micro_batch_size)
    corpus = open_synthetic(layout.model.max_sequence_length, layout.model.vocab_size, seed=1)
    loader = BatchLoader(
        stream=corpus.train,
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch(parallel.degrees.dp),
        dp_rank=parallel.dp_rank,
        dp_size=parallel.degrees.dp,
        start_step=0,
        prefetch=0,
        device=world.device,
    )
    optimizer = build_optimizer(list(parallel.parameters.values()), OptimConfig())
    step = OptimizerStep(parallel, optimizer, comm, layout.batching, train.global_batch_size, clip_norm=1.0)
    micro_batch = train.eval_micro_batch(parallel.degrees.dp)
    results: list[StepResult] = []
    evals: list[float] = []
    for index in range(layout.steps):
        results.append(step(next(loader), rate=1e-2))
        if index == 0:
            first_gradients = {name: whole(p.grad) for name, p in parallel.parameters.items() if p.grad is not None}
        # Between steps, where a gathered parameter that stays gathered would spoil the next one.
        if index % 2 == 0:
            sequences = train.eval_sequences
            evals.append(
                evaluate(parallel, corpus.heldout, layout.batching, sequences, micro_batch, comm, world.device)
            )
    return Outcome(
        losses=[result.loss.item() for result in results],
        evals=evals,
        router_losses=[result.router_loss.item() for result in results],
        dropped=[result.counts.dropped_LE.sum().item() for result in results],
        grad_norms=[result.grad_norm.item() for result in results],
        first_gradients=first_gradients,
        weights=whole_state(parallel),
        calls=dict(comm.calls),
        waits=dict(comm.waits),
    )


def whole(tensor: Tensor) -> np.ndarray:
    """All of a tensor, sharded or not, as an array (a copy)."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().numpy().copy()


def whole_state(parallel: ParallelModel) -> dict[str, np.ndarray]:
    """This rank's view of every parameter and buffer by logical name; sharded experts are only with their owners."""
    return {name: whole(tensor) for name, tensor in model_state(parallel.model).items()}


def merged(outcomes: list[Outcome]) -> dict[str, np.ndarray]:
    """The weights of all ranks."""
    return merged_arrays([outcome.weights for outcome in outcomes])


def merged_arrays(by_rank: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One dictionary of all ranks'; where two hold the same name they must agree to the bit."""
    all_of_them: dict[str, np.ndarray] = {}
    for arrays in by_rank:
        for name, array in arrays.items():
            if name in all_of_them:
                np.testing.assert_array_equal(all_of_them[name], array, err_msg=name)
            all_of_them[name] = array
    return all_of_them
