"""How a model becomes a parallel one. Read this first.

    build on meta  →  shard or replicate  →  materialise  →  fill with the start that (seed, name) says

Nothing is allocated before it is known where it lives, so no rank ever holds more than its part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from models.config import ModelConfig
from models.dispatcher import LocalDispatcher
from models.initialise import initialise
from models.placement import ExpertPlacement
from models.surroundings import Surroundings
from models.transformer import Transformer
from parallel.comm import CommKind, Communicator
from parallel.config import OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.fully_shard import ShardedGradients, shard_model
from parallel.gradient_reducer import GradientReducer
from parallel.mesh import Degrees, build_mesh
from parallel.torch_internals import shard_of
from parallel.world import World


class GradientSync(Protocol):
    """When gradients are zeroed and made global, as the loop calls it."""

    def begin_step(self) -> None:
        """Zero the gradients."""

    def begin_micro_batch(self, last: bool) -> None:
        """Before a micro-batch's backward; `last` of the step."""

    def finish_step(self) -> None:
        """After the last backward: on return every gradient is the global one."""


class LocalGradients:
    """One process: what backward leaves is the global gradient."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters

    def begin_step(self) -> None:
        """Free the gradients; backward makes them anew."""
        for parameter in self._parameters:
            parameter.grad = None

    def begin_micro_batch(self, last: bool) -> None:
        """Nothing to arrange: autograd adds up."""

    def finish_step(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True)
class ParallelModel:
    """A model laid over ranks, and what a loop needs to drive it."""

    model: Transformer
    parameters: dict[str, nn.Parameter]
    """What this rank owns, by name. Ask no module for its parameters: while FSDP2 has them gathered (in a step, after a
    forward without backward), `model.parameters()` are the gathered ones, and gradients cleared there are not ours."""
    gradients: GradientSync
    degrees: Degrees
    dp_group: ProcessGroup
    """The ranks that see different data."""
    dp_rank: int


def parallelize(
    model_config: ModelConfig,
    strategy: StrategyConfig,
    overlap: OverlapConfig,
    precision: PrecisionConfig,
    world: World,
    comm: Communicator,
    seed: int,
) -> ParallelModel:
    """Build `model_config` over the ranks of `world` as `strategy` says. Same seed, same start, in every layout."""
    degrees = Degrees.resolve(strategy, world.size)
    mesh = build_mesh(degrees, world.device.type)
    dp_group = torch.distributed.group.WORLD
    assert dp_group is not None

    with torch.device("meta"):
        model = Transformer(model_config, precision.compute.torch, _surroundings(model_config, dp_group, comm))
    model.to(precision.parameters.torch)
    if strategy.reduction is Reduction.shard:
        shard_mesh = mesh if degrees.dp_replicate > 1 else mesh["dp_shard"]
        shard_model(model, shard_mesh, precision, overlap)
    model.to_empty(device=world.device)
    initialise(model, seed, shard_of)

    parameters = dict(model.named_parameters())
    gradients: GradientSync = LocalGradients(list(parameters.values()))
    if strategy.reduction is Reduction.all_reduce:
        bucket_bytes = int(overlap.bucket_mib * 2**20)
        gradients = GradientReducer(parameters, dp_group, comm, bucket_bytes, overlap=overlap.grad_reduce)
    elif isinstance(model, FSDPModule):
        gradients = ShardedGradients(model, list(parameters.values()))
    return ParallelModel(model, parameters, gradients, degrees, dp_group, world.rank)


def _surroundings(model: ModelConfig, dp_group: ProcessGroup, comm: Communicator) -> Surroundings:
    def sum_over_data_ranks(counts: Tensor) -> Tensor:
        return comm.all_reduce(counts.clone(), dp_group, CommKind.control)

    return Surroundings(LocalDispatcher(ExpertPlacement.contiguous(model.moe.n_routed)), 0, sum_over_data_ranks)
