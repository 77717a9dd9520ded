"""How a model becomes a parallel one. Read this first.

    build on meta  →  shard or replicate  →  materialise  →  fill with the start that (seed, name) says

Nothing is allocated before it is known where it lives, so no rank ever holds more than its part.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from models.config import ModelConfig
from models.initialise import initialise
from models.transformer import Transformer
from parallel.comm import Communicator
from parallel.config import OverlapConfig, PrecisionConfig, Reduction, StrategyConfig
from parallel.fully_shard import shard_model
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


class GradientsInBackward:
    """For layouts whose gradients are global when backward returns: one process, and FSDP2, which reduces inside it."""

    def __init__(self, model: Transformer) -> None:
        self._model = model

    def begin_step(self) -> None:
        """Free the gradients; backward makes them anew."""
        for parameter in self._model.parameters():
            parameter.grad = None

    def begin_micro_batch(self, last: bool) -> None:
        """Nothing to arrange: FSDP2 adds every micro-batch's reduced shard to the sum."""

    def finish_step(self) -> None:
        """Nothing is under way."""


@dataclass(frozen=True)
class ParallelModel:
    """A model laid over ranks, and what a loop needs to drive it."""

    model: Transformer
    gradients: GradientSync
    degrees: Degrees
    mesh: DeviceMesh
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
        model = Transformer(model_config, precision.compute.torch)
    model.to(precision.parameters.torch)
    if strategy.reduction is Reduction.shard:
        shard_mesh = mesh if degrees.dp_replicate > 1 else mesh["dp_shard"]
        shard_model(model, shard_mesh, precision, overlap)
    model.to_empty(device=world.device)
    initialise(model, seed, shard_of)

    gradients: GradientSync = GradientsInBackward(model)
    if strategy.reduction is Reduction.all_reduce:
        bucket_bytes = int(overlap.bucket_mib * 2**20)
        gradients = GradientReducer(list(model.parameters()), dp_group, comm, bucket_bytes, overlap=overlap.grad_reduce)
    return ParallelModel(model, gradients, degrees, mesh, dp_group, world.rank)
