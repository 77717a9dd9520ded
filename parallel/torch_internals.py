"""The private torch APIs that we use, all of them, each with its reason.

Checked on torch 2.11 and 2.13; a new torch is first tried against this file's tests.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# Where a DTensor's local shard lies in the whole. Uneven shards make this more than rank x size, torch computes it for
# its own checkpoints, and there is no public name for it.
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from models.initialise import Shard, whole


def shard_of(tensor: Tensor) -> Shard:
    """The local part of `tensor`: storage, global shape, offset. A plain tensor is its own whole."""
    if not isinstance(tensor, DTensor):
        return whole(tensor)
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Shard(tensor.to_local(), tuple(tensor.shape), tuple(offset))


def norms_in_float64(tensors: Sequence[Tensor]) -> list[Tensor]:
    """2-norm of each of `tensors`, of one device and dtype, summed in float64.

    One launch for hundreds of gradients. torch's own clipping is built on this; its public face,
    torch.nn.utils.get_total_norm, has no dtype to sum in.
    """
    return list(torch._foreach_norm(list(tensors), 2, torch.float64))


def scale_in_place(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply all of `tensors` by a scalar that is still on the device, in one launch, with no wait for its value."""
    torch._foreach_mul_(list(tensors), factor)
