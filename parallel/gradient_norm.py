"""One global gradient norm over every layout's parts, and clipping by it (Pascanu et al. 2013)."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.owned import Owned
from parallel.torch_internals import norms_in_float64, scale_in_place


@torch.no_grad()
def clip_gradients(
    owned: Mapping[str, Owned], max_norm: float, world_size: int, anything_split: bool, comm: Communicator
) -> Tensor:
    """Scale all gradients in place so that their joint 2-norm is at most `max_norm` (infinity: only measure).

    Every rank adds the squares of what it owns, each divided by the number of ranks that own the same: one sum over
    the world then counts every part once, however a layout cut or copied it. Squares add up in float64: how they were
    split over ranks then does not show in a float32 coefficient. `anything_split`: whether a rank holds less than all.

    Returns:
        The norm before clipping, a float64 scalar, the same on every rank.

    Raises:
        RuntimeError: if a parameter has no gradient. A layout that loses one trains on and is silently wrong.
    """
    require_gradients(owned)
    # By name: ranks that own the same in another order (DualPipe's pairs) must clip by the same bits.
    parts_by_name = [owned[name] for name in sorted(owned)]
    gradients = [part.master.grad for part in parts_by_name if part.master.grad is not None]
    norms = norms_in_float64(gradients)
    by_holders: dict[int, list[Tensor]] = defaultdict(list)
    for part, norm in zip(parts_by_name, norms, strict=True):
        by_holders[part.n_holders].append(norm)
    # What every rank holds needs no sum; so data parallelism by replicas has none.
    everywhere = _square_sum(by_holders.pop(world_size, []), norms[0])
    if anything_split:
        parts = torch.zeros_like(everywhere)
        for n_holders, some in by_holders.items():
            parts += _square_sum(some, norms[0]) / n_holders
        everywhere = everywhere + comm.all_reduce(parts, None, CommKind.control)
    norm = everywhere.sqrt()
    if max_norm != float("inf"):
        coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        scale_in_place(gradients, coefficient.to(gradients[0].dtype))
    return norm


def require_gradients(owned: Mapping[str, Owned]) -> None:
    """Raises:
    RuntimeError: naming the parameters that have no gradient.
    """
    missing = [name for name, part in owned.items() if part.master.grad is None]
    if missing:
        raise RuntimeError(f"no gradient for {', '.join(missing)}")


def _square_sum(norms: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(norms).square().sum() if norms else torch.zeros_like(like)
