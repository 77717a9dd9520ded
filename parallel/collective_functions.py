"""Collectives that gradients flow through: each one's backward is its mirror image.

    forward     all_gather        reduce_scatter     all_to_all (sent, received)
    backward    reduce_scatter    all_gather         all_to_all (received, sent)

All along dimension 0, by the Communicator, which counts and awaits them. Each is begun and arrived at in two steps, and
what stands between these hides it, in both directions: autograd goes back the way that forward came.

    forward     begin: start    what stands between    arrive: wait
    backward    begin: wait     its backward           arrive: start
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.comm import Communicator, Pending
from parallel.comm_kind import CommKind
from parallel.departure import Departure


@dataclass(frozen=True)
class Among:
    """Between which ranks, what for, and who counts it."""

    comm: Communicator
    group: ProcessGroup
    kind: CommKind
    lane: torch.cuda.Stream | None = None
    """Where what is begun starts, on whoever's word that drives it (parallel/departure.py); None: at once."""


class Exchange(ABC):
    """A collective and its mirror image."""

    among: Among

    @abstractmethod
    def start(self, x: Tensor) -> Pending:
        """Begin it, without autograd."""

    @abstractmethod
    def start_back(self, grad: Tensor) -> Pending:
        """Begin its mirror image: the gradient of what came, to that of what was sent."""

    def prepare(self) -> None:  # noqa: B027 most have nothing to prepare
        """Begin what `start` would have to wait for."""

    def begin(self, x: Tensor) -> "Travelling":
        """Begin it; gradients flow through."""
        link = _Link(self)
        return Travelling(_Begin.apply(x, link), link)


@dataclass(frozen=True)
class Gather(Exchange):
    """[n, …] of every rank as [ranks·n, …]; each rank's gradients of all of it are partial, and summed."""

    among: Among

    def start(self, x: Tensor) -> Pending:
        return self.among.comm.start_all_gather(x, self.among.group, self.among.kind)

    def start_back(self, grad: Tensor) -> Pending:
        return self.among.comm.start_reduce_scatter(grad, self.among.group, self.among.kind)


@dataclass(frozen=True)
class Scatter(Exchange):
    """The sum over ranks of [ranks·n, …], this rank's [n, …] of it."""

    among: Among

    def start(self, x: Tensor) -> Pending:
        return self.among.comm.start_reduce_scatter(x, self.among.group, self.among.kind)

    def start_back(self, grad: Tensor) -> Pending:
        return self.among.comm.start_all_gather(grad, self.among.group, self.among.kind)


class Travelling(NamedTuple):
    """What an exchange was begun with, until it is there."""

    token: Tensor
    link: "_Link"

    def arrive(self) -> Tensor:
        """Wait for it. Once."""
        arrived: Tensor = _Arrive.apply(self.token, self.link)
        return arrived


def all_gather(x: Tensor, among: Among) -> Tensor:
    """See Gather."""
    return Gather(among).begin(x).arrive()


def reduce_scatter(x: Tensor, among: Among) -> Tensor:
    """See Scatter."""
    return Scatter(among).begin(x).arrive()


class _Link:
    """Between the two steps of an exchange: what is under way, in either direction, which autograd is not to see before
    it is there. For autograd an empty token goes from one step to the other."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._departure: Departure | None = None

    def forth(self, x: Tensor) -> None:
        """It is ready to travel."""
        self._departure = self._depart(x, self._exchange.start, self._exchange.prepare)

    def back(self, grad: Tensor) -> None:
        """The gradient of what came is."""
        self._departure = self._depart(grad, self._exchange.start_back, None)

    def start(self) -> None:
        """Send off what is ready, if that has not happened: without a lane it has."""
        if self._departure is not None:
            self._departure.start()

    def wait(self) -> Tensor:
        departure, self._departure = self._departure, None
        assert departure is not None, "it arrives once"
        return departure.arrive()

    def _depart(self, x: Tensor, start: Callable[[Tensor], Pending], prepare: Callable[[], None] | None) -> Departure:
        among = self._exchange.among
        return Departure(x, start, prepare, among.comm, among.lane)


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, link: _Link) -> Tensor:
        ctx.link = link
        link.forth(x)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, token_grad: Tensor) -> tuple[Tensor, None]:
        return ctx.link.wait(), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, link: _Link) -> Tensor:
        ctx.link = link
        return link.wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.link.back(grad)
        return grad.new_empty(0), None
