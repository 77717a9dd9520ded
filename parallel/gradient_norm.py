"""One global gradient norm over every layout's parts, and clipping by it (Pascanu et al. 2013)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.owned import Owned
from parallel.torch_internals import norms_in_float64

NormsOf = Callable[[Sequence[Tensor]], list[Tensor]]
"""2-norms of tensors, one by one, in float64."""


@torch.no_grad()
def global_norm(
    owned: Mapping[str, Owned],
    world_size: int,
    anything_split: bool,
    comm: Communicator,
    norms_of: NormsOf = norms_in_float64,
) -> Tensor:
    """The joint 2-norm of all gradients, a float64 scalar, the same on every rank.

    Every rank adds the squares of what it owns, each divided by the number of ranks that own the same: one sum over
    the world then counts every part once, however a layout cut or copied it. Squares add up in float64: how they were
    split over ranks then does not show in a float32 coefficient. `anything_split`: whether a rank holds less than all;
    `norms_of`: how each gradient is measured.

    Raises:
        RuntimeError: if a parameter has no gradient. A layout that loses one trains on and is silently wrong.
    """
    require_gradients(owned)
    # By name: ranks that own the same in another order (DualPipe's pairs) must clip by the same bits.
    parts_by_name = [owned[name] for name in sorted(owned)]
    gradients = [part.master.grad for part in parts_by_name if part.master.grad is not None]
    norms = norms_of(gradients)
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
    return everywhere.sqrt()


def clip_coefficient(norm: Tensor, max_norm: float) -> Tensor | None:
    """What gradients of that norm are multiplied by so that it is at most `max_norm`, a float64 scalar; None: by
    nothing, if that is infinity."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm != float("inf") else None


def require_gradients(owned: Mapping[str, Owned]) -> None:
    """Raises:
    RuntimeError: naming the parameters that have no gradient.
    """
    missing = [name for name, part in owned.items() if part.master.grad is None]
    if missing:
        raise RuntimeError(f"no gradient for {', '.join(missing)}")


def _square_sum(norms: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(norms).square().sum() if norms else torch.zeros_like(like)
