"""What one rank owns of a model: of each parameter a part of the fp32 master, a plain tensor that the optimizer moves.

The parameters that modules compute with may be something else: FSDP2's are gathered and freed, ZeRO-1's are bf16 and
whole. An optimizer over plain local tensors does not care, and fused kernels take them all in one call (which they
refuse where plain tensors and DTensors, or DTensors of several meshes, are mixed).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models.initialise import Shard
from parallel.tensor_parallel.split import Split
from parallel.torch_internals import local_offset


@dataclass(frozen=True)
class Owned:
    """One rank's part of one parameter."""

    master: nn.Parameter
    """Plain and local. Its `.grad` is there after GradientSync.finish_step. In halves (parallel/halves.py) it has no
    memory."""
    shard: Shard
    """The master's storage, and where it lies in the whole parameter."""
    n_holders: int
    """Ranks of the world that own this very part: a sum over all ranks counts it as often."""


def own(parameter: nn.Parameter, split: Split | None, n_holders: int) -> Owned:
    """The part of `parameter` that is here, sharing its storage; `split`: what `parameter` itself is a part of."""
    shape = tuple(parameter.shape)
    if not isinstance(parameter, DTensor):
        return Owned(parameter, place(parameter.detach(), shape, (0,) * len(shape), split), n_holders)
    local: Tensor = parameter.to_local().detach()
    return Owned(nn.Parameter(local), place(local, shape, local_offset(parameter), split), n_holders)


def place(local: Tensor, shape: tuple[int, ...], offset: tuple[int, ...], split: Split | None) -> Shard:
    """`local` as a part of the whole: it begins at `offset` of a tensor of `shape`, the part that `split` says."""
    if split is None:
        return Shard(local, shape, offset)
    whole, begin = list(shape), list(offset)
    whole[split.dim] *= split.count
    begin[split.dim] += split.index * shape[split.dim]
    return Shard(local, tuple(whole), tuple(begin))


def masters(owned: Mapping[str, Owned]) -> list[nn.Parameter]:
    """What an optimizer is made over."""
    return [part.master for part in owned.values()]
