"""All tokens of a group of ranks to each of them; what they make of the tokens, partial sums, is added up.

    dispatch   weights and choices [T, 2K] → all_gather →  [R·T, 2K]
               x [T, D]                    → all_gather →  [R·T, D]  → inner dispatcher
    combine    inner dispatcher → [R·T, D], this rank's part of each sum  → reduce_scatter →  [T, D]

Over expert-parallel ranks, each of which then takes the pairs of its own slots: R·T rows travel where all-to-all sends
K·T, so it pays while few ranks share many experts per token, and nothing is uneven. Over tensor-parallel ranks that
split experts by width: each takes all pairs, and makes a part of every row. Other ways than these two collectives
leave out what nobody wants (parallel/expert_parallel/taken.py).

T tokens of this rank, R ranks, N = R·T of all, K experts per token, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.dispatcher import Dispatched, Dispatcher, Leaving, Outgoing
from models.router import Routing
from parallel.collective_functions import Among, Exchange, Gather, Scatter, Travelling
from parallel.comm import Pending


class Ways(NamedTuple):
    """How all that a layer's tokens are travels between ranks."""

    there: Exchange
    """Tokens, as Gather, but for rows of tokens that have no expert here: these, and their gradients, may be left
    undefined. What arrives, and the gradients of `back`, may lie where the next rows will: nothing keeps them."""
    back: Exchange
    """Partial sums, as Scatter."""


@dataclass(frozen=True)
class _GatherRouting(Exchange):
    """The weights [T, K] of every rank's tokens, and beside them the choices, as [R·T, 2K]: one small message, which
    takes as long as either alone. Gradients of the weights alone go back."""

    among: Among
    choices_TK: Tensor
    """In the weights' dtype, which counts experts exactly; -1 for a pair that is dropped."""

    def start(self, x: Tensor) -> Pending:
        both_TC = torch.cat((x, self.choices_TK), dim=1)
        return self.among.comm.start_all_gather(both_TC, self.among.group, self.among.kind)

    def start_back(self, grad: Tensor) -> Pending:
        grad_NK = grad[:, : self.choices_TK.shape[1]]
        return self.among.comm.start_reduce_scatter(grad_NK, self.among.group, self.among.kind)


class _Outlook(NamedTuple):
    """What comes with the tokens."""

    routing: Travelling
    drops: bool
    """Whether pairs may be dropped."""
    back: Exchange


class _Ticket(NamedTuple):
    inner: Any
    """Of what came, and of its leaving, in the inner dispatcher."""
    inner_leaving: Any
    routing: Routing
    """Of all ranks' tokens."""
    back: Exchange


class GatheredDispatcher:
    """`inner` sees the tokens of all ranks of `among`, which must have the same number of them."""

    def __init__(self, inner: Dispatcher, among: Among, ways: Callable[[Tensor], Ways] | None = None) -> None:
        """`ways`: asked for each layer, of its choices [T, K], -1 for a pair that is dropped; None: collectives of all
        rows."""
        self._inner, self._among = inner, among
        self._ways = ways or (lambda choices_TK: Ways(Gather(among), Scatter(among)))
        self.placement = inner.placement

    def leaving(self, x_TD: Tensor, routing: Routing) -> Leaving:
        """See Dispatcher: the tokens themselves. Their choices and weights set off before them."""
        choices_TK, drops = routing.experts_TK, routing.kept_TK is not None
        if routing.kept_TK is not None:
            choices_TK = choices_TK.masked_fill(~routing.kept_TK, -1)
        ways = self._ways(choices_TK)
        exchange = _GatherRouting(self._among, choices_TK.to(routing.weights_TK.dtype))
        outlook = _Outlook(exchange.begin(routing.weights_TK), drops, ways.back)
        return Leaving((Outgoing(x_TD, ways.there, outlook),), None)

    def arrived(self, rows_ND: Tensor, ticket: _Outlook) -> Dispatched:
        """See Dispatcher."""
        weights_NK, choices_NK = ticket.routing.arrive().chunk(2, dim=1)
        choices_NK = choices_NK.detach().long()
        kept_NK = choices_NK >= 0 if ticket.drops else None
        # Of a dropped pair nobody asks which expert it was: any will do.
        routing = Routing(choices_NK.clamp(min=0) if ticket.drops else choices_NK, weights_NK, kept_NK)
        leaving = self._inner.leaving(rows_ND, routing)
        (part,) = leaving.parts
        inner = self._inner.arrived(part.begin().arrive(), part.ticket)
        ticket_of_all = _Ticket(inner.ticket, leaving.ticket, routing, ticket.back)
        return Dispatched(inner.rows_ND, inner.offsets_E, inner.weights_N, ticket_of_all)

    def returning(self, rows_ND: Tensor, ticket: _Ticket) -> Outgoing:
        """See Dispatcher: partial sums of the tokens."""
        returned_ND = self._inner.returning(rows_ND, ticket.inner).begin().arrive()
        partial_TD = self._inner.returned(returned_ND, ticket.inner_leaving, ticket.routing)
        return Outgoing(partial_TD, ticket.back, None)

    def returned(self, rows_ND: Tensor, ticket: None, routing: Routing) -> Tensor:
        """See Dispatcher."""
        return rows_ND
