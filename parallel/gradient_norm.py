"""One global gradient norm over every layout's shards, and clipping by it (Pascanu et al. 2013)."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.comm import CommKind, Communicator
from parallel.torch_internals import norms_in_float64, scale_in_place


@torch.no_grad()
def clip_gradients(parameters: Mapping[str, nn.Parameter], max_norm: float, comm: Communicator) -> Tensor:
    """Scale all gradients in place so that their joint 2-norm is at most `max_norm` (infinity: only measure).

    Squares add up in float64: how they were split over ranks then does not show in a float32 coefficient.

    Returns:
        The norm before clipping, a float64 scalar, the same on every rank.

    Raises:
        RuntimeError: if a parameter has no gradient. A layout that loses one trains on and is silently wrong.
    """
    missing = [name for name, parameter in parameters.items() if parameter.grad is None]
    if missing:
        raise RuntimeError(f"no gradient for {', '.join(missing)}")
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    norms = norms_in_float64(local)

    squares: dict[tuple, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=local[0].device))
    for gradient, norm in zip(gradients, norms, strict=True):
        squares[_sharding(gradient)] += norm.square()
    total = torch.zeros((), dtype=torch.float64, device=local[0].device)
    for sharding, square in squares.items():
        for mesh, dim in sharding:
            comm.all_reduce(square, mesh.get_group(dim), CommKind.control)
        total += square
    norm = total.sqrt()
    if max_norm != float("inf"):
        coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        scale_in_place(local, coefficient.to(local[0].dtype))
    return norm


def _sharding(gradient: Tensor) -> tuple:
    """The mesh dimensions over which `gradient` is split: its squares are summed over these."""
    if not isinstance(gradient, DTensor):
        return ()
    mesh = gradient.device_mesh
    return tuple((mesh, dim) for dim, placement in enumerate(gradient.placements) if placement.is_shard())
