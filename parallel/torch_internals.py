"""The private torch APIs that we use, all of them, each with its reason.

Checked on torch 2.11 and 2.13; a new torch is first tried against this file's tests.
"""

from torch import Tensor
from torch.distributed.tensor import DTensor

# Where a DTensor's local shard lies in the whole. Uneven shards make this more than rank x size, torch computes it for
# its own checkpoints, and there is no public name for it.
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from models.initialise import Shard


def shard_of(tensor: Tensor) -> Shard:
    """The local part of `tensor`: storage, global shape, offset. A plain tensor is its own whole."""
    if not isinstance(tensor, DTensor):
        return Shard(tensor, tuple(tensor.shape), (0,) * tensor.dim())
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Shard(tensor.to_local(), tuple(tensor.shape), tuple(offset))
