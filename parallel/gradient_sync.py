"""When gradients are zeroed, summed over ranks, and handed to the optimizer: what a step calls, in every layout."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from parallel.early_update import EarlyUpdates
from parallel.pipeline.action import StageKey


class GradientSync(Protocol):
    """Micro-batches add up; once per step their sum becomes the global gradient of what this rank owns."""

    def reduced_together(self) -> list[list[nn.Parameter]]:
        """All masters, by the moment at which their gradients are the global ones."""

    def update_early(self, updates: EarlyUpdates) -> None:
        """From now on, update each of `reduced_together` at its moment, behind the rest of backward."""

    def begin_step(self) -> None:
        """Zero the gradients."""

    def begin_backward(self, stage: StageKey, last: bool) -> None:
        """Before a backward of a stage that makes weight gradients; `last` of the step for that stage."""

    def arrived(self, stage: StageKey, name: str) -> None:
        """A gradient was added to by hand: no hook of autograd fired for this parameter."""

    def made_by_hand(self, stage: StageKey) -> None:
        """All of a stage's gradients that were added to by hand have arrived."""

    def finish_step(self) -> None:
        """After the last backward: on return every master's `.grad` is the global gradient; early updates are done."""

    def copies(self) -> Mapping[nn.Parameter, Tensor]:
        """What modules compute with, by master, where that is the master rounded and no more: optimizers may do it."""

    def publish(self, copies_are_made: bool) -> None:
        """After the optimizer has moved the masters: what modules compute with follows them. `copies_are_made`: it has
        rounded `copies`."""


@runtime_checkable
class Remade(Protocol):
    """A GradientSync whose gradients can be made again, by kernels alone, where backward made them once: within it they
    are added up on the device, and nothing is reduced."""

    def sums(self) -> list[Tensor]:
        """After a step's last backward, before `finish_step`: where the sums of all micro-batches are, but for those
        that never move."""

    def take_sums(self, sums: Sequence[Tensor]) -> None:
        """In place of a step's backwards: they were made again where `sums` said."""
