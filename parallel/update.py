"""An update of the weights that is left out where a number is not finite: decided on the device, with nobody waiting.

Every rank decides alone, and all alike: the gradient norm is of all ranks' gradients, the losses are all ranks' sums.
Where each rank holds all gradients, its norm is its own sum over them: if memory or arithmetic spoils that of one rank,
it leaves the step out alone, which the ranks find out a step or two later (train/faults/stop.py).
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from parallel.torch_internals import scale_in_place


class Update(NamedTuple):
    """What came of one."""

    grad_norm: Tensor
    """Global 2-norm before clipping, a float64 scalar."""
    left_out: Tensor
    """A bool scalar, the same on every rank: nothing was moved (overlap.optimizer: nothing should have been)."""


def not_finite(grad_norm: Tensor, losses: Tensor) -> Tensor:
    """Whether any of the numbers is NaN or infinite, a bool scalar."""
    return ~(grad_norm.isfinite() & losses.isfinite().all())


@runtime_checkable
class OnePass(Protocol):
    """An optimizer that clips, leaves a step out, and rounds masters to what modules compute with, itself. Gradients
    may be in another dtype than the masters."""

    halves: bool
    """Whether masters that have copies are to be kept in halves (parallel/halves.py)."""

    def round_into(self, copies: Mapping[nn.Parameter, Tensor], lows: Mapping[nn.Parameter, Tensor]) -> None:
        """From now on, whatever moves a master of `copies` rounds it into that tensor too. One of `lows` is in halves:
        it is read from its copy and that tensor, and written there, and nowhere else."""

    def step_scaled(self, clip: Tensor | None, left_out: Tensor | None) -> None:
        """Multiply gradients by `clip` and move everything by them; nothing, to the bit, if `left_out`."""


def step_unless(left_out: Tensor, optimizer: Optimizer, clip: Tensor | None = None) -> None:
    """`optimizer.step()` with gradients times `clip`; if `left_out`, parameters, moments and step counts stay as they
    are, to the bit.

    On a GPU by what torch's GradScaler tells a fused optimizer: its kernel reads `found_inf` and returns.
    """
    if isinstance(optimizer, OnePass):
        optimizer.step_scaled(clip, left_out)
        return
    if clip is not None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale_in_place(gradients, clip.to(gradients[0].dtype))
    if not left_out.is_cuda:
        if not left_out:
            optimizer.step()
        return
    if not optimizer.defaults.get("fused"):
        raise RuntimeError(f"{type(optimizer).__name__} on a GPU is not fused: it would not leave out a step")
    optimizer.found_inf = left_out.to(torch.float32)  # type: ignore[attr-defined]
    optimizer.step()
