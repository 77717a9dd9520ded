"""How a model becomes a parallel one. Read this first.

    build each stage on meta  →  tensor parallel  →  expert parallel  →  compile  →  recompute  →  data parallel
                              →  materialise  →  fill with the start that (seed, name) says

Nothing is allocated before it is known where it lives, so no rank ever holds more than its part. Every dimension is
independent of the others: layers are divided over pipeline stages, matrices over tensor-parallel ranks, experts over
expert-parallel ranks, and what is left equal is replicated or sharded over the ranks that hold the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from models.config import ModelConfig
from models.fp8_linear import multiply_in_fp8
from models.initialise import Shard, initialise
from models.rows import build_rows
from models.surroundings import Surroundings
from models.transformer import Transformer
from models.whole_sequence import WholeSequence
from parallel.collective_functions import Among
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.compile import addition, compile_parts, measuring
from parallel.config import Matmul, OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.expert_parallel.build import build_dispatcher, build_placement
from parallel.fully_shard import ShardedGradients, shard_stage
from parallel.gradient_norm import NormsOf
from parallel.gradient_reducer import GradientReducer
from parallel.gradient_sync import GradientSync
from parallel.mesh import Axis, Degrees, Layout
from parallel.owned import Owned, own
from parallel.pipeline.action import Schedule, StageKey
from parallel.pipeline.schedules import build_schedule
from parallel.pipeline.split import split_layers
from parallel.recompute import recompute_parts
from parallel.tensor_parallel.apply import tensor_parallel
from parallel.tensor_parallel.sequence import SequencePart
from parallel.tensor_parallel.split import Split
from parallel.world import World
from parallel.zero1 import ShardedOptimizer


@dataclass(frozen=True)
class ParallelModel:
    """A model laid over ranks, and what is needed to drive it."""

    stages: dict[StageKey, Transformer]
    """What this rank computes with; one stage, the whole model, where there is no pipeline."""
    schedule: Schedule
    """In which order stages take a step's micro-batches, on all pipeline ranks."""
    owned: dict[str, Owned]
    """What this rank owns, by name. Ask no module for its parameters: while FSDP2 has them gathered (in a step, after a
    forward without backward), `stage.parameters()` are the gathered ones, and gradients cleared there are not ours."""
    gradients: GradientSync
    layout: Layout
    overlap: OverlapConfig
    norms_of: NormsOf
    """How gradients are measured."""
    cuda_graph: bool
    """Whether forward and backward are to be launched as graphs."""
    data: Axis
    """The ranks that see different data, and are equal to this one in all else."""
    shards: bool
    """Whether data-parallel ranks share out parameters, or masters."""
    pipeline: Axis
    """The ranks that hold the other stages of the same model."""

    @property
    def counts_loss(self) -> bool:
        """Whether this rank, of those that compute the same loss, is the one that reports it."""
        return self.layout.dense.axis("tp").rank == 0

    @property
    def split_anywhere(self) -> bool:
        """Whether some rank owns less than the whole model; the same answer on all."""
        degrees = self.layout.degrees
        return degrees.world > 1 and (self.shards or degrees.pp * degrees.tp * degrees.ep > 1)

    @property
    def counts_data(self) -> bool:
        """Whether this rank, of those that see the same data, is the one that counts it."""
        return self.counts_loss and self.pipeline.rank == 0

    def shard_of(self, name: str, tensor: Tensor) -> Shard:
        """Where the values of a parameter or buffer are kept, and which part of the whole they are."""
        if name in self.owned:
            return self.owned[name].shard
        return Shard(tensor, tuple(tensor.shape), (0,) * tensor.dim())


def parallelize(
    model_config: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    precision: PrecisionConfig,
    world: World,
    comm: Communicator,
    seed: int,
    n_micro_batches: int,
    sequence_length: int,
) -> ParallelModel:
    """Build `model_config` over the ranks of `world` as `strategy` says. Same seed, same start, in every layout.

    `n_micro_batches` of a step decide the pipeline's schedule; `sequence_length`, in tokens, how layers are weighed
    when they are divided over stages.
    """
    degrees = Degrees.resolve(strategy, world.size)
    layout = Layout.over_world(degrees, world.rank)
    schedule = build_schedule(
        strategy.schedule, degrees.pp, n_micro_batches, strategy.stages_per_rank, overlap.forward_backward
    )
    layers = split_layers(model_config, schedule.n_stages, sequence_length)
    around = _surroundings(model_config, strategy, overlap, layout, schedule, comm, world.device)
    tp = layout.dense.axis("tp")

    stages: dict[StageKey, Transformer] = {}
    splits: dict[str, Split] = {}
    for key in schedule.stages_of_rank(layout.pp_rank):
        with torch.device("meta"):
            stage = Transformer(model_config, precision.compute.torch, around, layers[key.stage])
        resident = precision.compute if strategy.reduction is Reduction.shard_optimizer else precision.parameters
        for parameter in stage.parameters():
            parameter.data = parameter.data.to(resident.torch)
        for buffer in stage.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(precision.parameters.torch)
        if degrees.tp > 1:
            among = Among(comm, tp.group, CommKind.tp)
            splits |= tensor_parallel(stage, among, degrees.etp > 1, overlap.async_tp)
        if precision.matmul is Matmul.fp8:
            multiply_in_fp8(stage)
        if strategy.compile:
            compile_parts(stage, around.hide_behind_shared, world.device, precision.compute.torch)
        recompute_parts(
            stage, strategy.recompute, around.hide_behind_shared, to_the_end=degrees.tp > 1 and overlap.async_tp > 1
        )
        stages[key] = stage

    if strategy.reduction is Reduction.shard:
        dense_mesh, expert_mesh = _fsdp_meshes(layout, world.device.type)
        for stage in stages.values():
            shard_stage(stage, dense_mesh, expert_mesh, precision, overlap)
    for stage in stages.values():
        stage.to_empty(device=world.device)

    owned, gradients = _lay_gradients(
        stages, splits, strategy, overlap, precision, layout, schedule, comm, world.device
    )
    parallel = ParallelModel(
        stages=stages,
        schedule=schedule,
        owned=owned,
        gradients=gradients,
        layout=layout,
        overlap=overlap,
        norms_of=measuring(strategy.compile, world.device),
        cuda_graph=strategy.cuda_graph,
        data=layout.dense.axis("dp_replicate", "dp_shard"),
        pipeline=layout.dense.axis("pipe", "mirror"),
        shards=strategy.reduction in (Reduction.shard, Reduction.shard_optimizer),
    )
    for stage in stages.values():
        initialise(stage, seed, parallel.shard_of)
    gradients.publish(copies_are_made=False)
    return parallel


def _surroundings(
    model: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    layout: Layout,
    schedule: Schedule,
    comm: Communicator,
    device: torch.device,
) -> Surroundings:
    """What the network needs from outside this rank."""
    degrees = layout.degrees
    tokens = layout.dense.axis("dp_replicate", "dp_shard", "tp")

    def sum_over_data_ranks(counts: Tensor) -> Tensor:
        return comm.all_reduce(counts.clone(), tokens.group, CommKind.control)

    ep, tp = layout.experts.axis("ep"), layout.dense.axis("tp")
    among_tp = Among(comm, tp.group, CommKind.tp)
    lane = torch.cuda.Stream(device, priority=-1) if overlap.forward_backward and device.type == "cuda" else None
    dispatcher = build_dispatcher(
        strategy.dispatcher,
        build_placement(strategy.placement, model.moe.n_routed, degrees.ep),
        ep.rank,
        Among(comm, ep.group, CommKind.ep, lane),
        among_tp if degrees.etp > 1 else None,
        overlap.dispatch_chunks,
        build_rows(model.row_backend),
        strategy.rows,
    )
    travels = degrees.ep * degrees.etp > 1 and model.moe.n_shared > 0
    sequence = SequencePart(among_tp) if degrees.tp > 1 else WholeSequence()
    hides = travels and overlap.shared_experts
    return Surroundings(
        dispatcher,
        hides,
        ep.rank,
        sum_over_data_ranks,
        sequence,
        overlap.forward_backward,
        whole_backward=not schedule.splits_backward,
    )


def _fsdp_meshes(layout: Layout, device_type: str) -> tuple[DeviceMesh, DeviceMesh]:
    """Over which ranks FSDP2 shards dense weights, and routed experts."""
    degrees = layout.degrees
    dense_names = ("dp_replicate", "dp_shard") if degrees.dp_replicate > 1 else ("dp_shard",)
    dense = layout.dense.mesh(dense_names, device_type, layout.activations)
    if degrees.tp == degrees.ep == 1:
        return dense, dense
    names = ("copies", "efsdp") if degrees.expert_copies > 1 else ("efsdp",)
    return dense, layout.experts.mesh(names, device_type, layout.activations)


@dataclass(frozen=True)
class _Holders:
    """The ranks that hold a parameter, or the same part of it."""

    summed: Axis
    """Over which its gradient is summed, outside FSDP2's mesh."""
    n_shards: int
    """In FSDP2's mesh, which share it out."""
    count: int
    """Of the world."""


def _lay_gradients(
    stages: Mapping[StageKey, Transformer],
    splits: Mapping[str, Split],
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    precision: PrecisionConfig,
    layout: Layout,
    schedule: Schedule,
    comm: Communicator,
    device: torch.device,
) -> tuple[dict[str, Owned], GradientSync]:
    """For each parameter: what of it this rank owns, and over which ranks its gradient is summed.

    A parameter is held by the ranks that differ from this one only in dimensions that do not cut it. Of these, the
    ranks of FSDP2's mesh share its gradient out among them; over all others it is summed.
    """
    sharding = strategy.reduction is Reduction.shard
    degrees = layout.degrees
    mirrors = 2 if degrees.paired else 1
    copied = ("mirror",) if sharding else ("mirror", "dp_replicate", "dp_shard")
    copied_experts = ("mirror",) if sharding else ("mirror", "copies", "efsdp")
    dense_shards, expert_shards = (degrees.dp_shard, degrees.efsdp) if sharding else (1, 1)
    # Groups are made by all ranks in this order, whether their stages have such parameters or not.
    apart = layout.activations
    expert_axis = layout.experts.axis(*copied_experts, apart_from=apart)
    experts = _Holders(expert_axis, expert_shards, mirrors * degrees.expert_copies * degrees.efsdp)
    split = _Holders(layout.dense.axis(*copied, apart_from=apart), dense_shards, mirrors * degrees.dp)
    whole = _Holders(
        layout.dense.axis(*copied, "tp", apart_from=apart), dense_shards, mirrors * degrees.dp * degrees.tp
    )

    def holders(name: str) -> _Holders:
        if ".experts.routed." in name:
            return experts
        return split if name in splits else whole

    named = {key: dict(stage.named_parameters()) for key, stage in stages.items()}
    reduced = {key: {n: (p, holders(n).summed) for n, p in parameters.items()} for key, parameters in named.items()}
    bucket_bytes = int(overlap.bucket_mib * 2**20)
    if strategy.reduction is Reduction.shard_optimizer:
        sharded = ShardedOptimizer(
            reduced,
            splits,
            {n: holders(n).count for parameters in named.values() for n in parameters},
            precision,
            comm,
            bucket_bytes,
            overlap.grad_reduce,
            addition(strategy.compile, device),
        )
        return sharded.owned, sharded
    owned = {
        name: own(parameter, splits.get(name), holders(name).count // holders(name).n_shards)
        for parameters in named.values()
        for name, parameter in parameters.items()
    }
    if sharding:
        beyond = {name: holders(name).summed for name in owned}
        by_hand = schedule.splits_backward or overlap.forward_backward
        return owned, ShardedGradients(stages, owned, beyond, comm, overlap.grad_reduce, by_hand)
    return owned, GradientReducer(reduced, comm, bucket_bytes, overlap.grad_reduce)
