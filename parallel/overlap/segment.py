"""A stage cut into graphs: autograd goes back inside a segment, and whoever drives it goes from one to the next.

    segment   embedding, attention │                       │ routed and shared experts │              │ sum, attention …
                                   └─ rows, on their way ─→┘                           └─ the same ──→┘
                                   └─ normed ─────────────→┘                           └─ shared ────→┘
                                   └─ residual, weights ─────────────────────────────────────────────→┘

What is handed on keeps no values alive but those that a graph has saved, as if there were no cut: a segment holds where
its outputs were made, not what they are, and what enters does so by an empty token.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from models.dispatcher import Travelling
from parallel import collective_functions
from parallel.overlap.order import Part


class Crossing:
    """Where a tensor leaves one graph, and the gradient that comes back for it from another."""

    def __init__(self, made: Tensor) -> None:
        self.edge = get_gradient_edge(made) if made.requires_grad else None
        """None: it needs no gradient."""
        self.grad: Tensor | None = None


class Segment:
    """One graph, from its forward to its backward."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.tokens: list[Tensor] = []
        """Its leaves, but for the weights."""
        self._crossings: list[Crossing] = []
        self._losses: list[tuple[GradientEdge, Tensor]] = []
        self._came: list[collective_functions.Travelling] = []

    def enter(self, x: Tensor, crossing: Crossing) -> Tensor:
        """`x` in this graph; its gradient will be in `crossing`."""
        self.tokens.append(x.new_empty(0, requires_grad=True))
        entered: Tensor = _Enter.apply(self.tokens[-1], [x.detach()], crossing)
        return entered

    def leave(self, x: Tensor) -> Crossing:
        """`x` goes on from here."""
        crossing = Crossing(x)
        self._crossings.append(crossing)
        return crossing

    def hand(self, x: Tensor, to: "Segment") -> Tensor:
        """`x`, made in this graph, in that of another one."""
        return to.enter(x, self.leave(x))

    def send(self, rows: Travelling, to: "Segment") -> collective_functions.Travelling:
        """What was begun in this graph, to arrive in that of another one."""
        assert isinstance(rows, collective_functions.Travelling), "it travels between ranks"
        crossing = self.leave(rows.token)
        crossing.grad = rows.token.new_empty(0)  # what comes back comes by the link
        token = rows.token.detach().requires_grad_()
        arriving = rows._replace(token=token)
        to.tokens.append(token)
        to._came.append(arriving)
        return arriving

    def minimise(self, loss: Tensor) -> None:
        """`loss` is a part of what is minimised."""
        if loss.requires_grad:
            self._losses.append((get_gradient_edge(loss), torch.ones_like(loss)))

    def roots(self) -> tuple[list[GradientEdge], list[Tensor]]:
        """Where its backward begins, and with which gradients. Once."""
        edges, grads = [edge for edge, _ in self._losses], [grad for _, grad in self._losses]
        for crossing in self._crossings:
            if crossing.edge is not None:
                assert crossing.grad is not None, "what was handed on was used"
                edges.append(crossing.edge)
                grads.append(crossing.grad)
                crossing.grad = None  # a graph whose weights' half is put off holds the crossing
        self._crossings.clear()
        return edges, grads

    def start_back(self) -> None:
        """After backward: send off the gradients of what travelled here."""
        for travelling in self._came:
            travelling.link.start()


class _Enter(torch.autograd.Function):
    """The beginning of a graph, which does not hold what begins there."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, values: list[Tensor], crossing: Crossing) -> Tensor:
        ctx.crossing = crossing
        return values.pop()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ctx.crossing.grad = grad
        return grad.new_empty(0), None, None
