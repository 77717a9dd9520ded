"""All tokens of a group of ranks to each of them; what they make of the tokens, partial sums, is added up.

    dispatch   x [T, D], choices, weights  → all_gather →  [R·T, D]  → inner dispatcher
    combine    inner dispatcher → [R·T, D], this rank's part of each sum  → reduce_scatter →  [T, D]

Over expert-parallel ranks, each of which then takes the pairs of its own slots: R·T rows travel where all-to-all sends
K·T, so it pays while few ranks share many experts per token, and nothing is uneven. Over tensor-parallel ranks that
split experts by width: each takes all pairs, and makes a part of every row.

T tokens of this rank, R ranks, K experts per token, D model width.
"""

from typing import Any, NamedTuple

from torch import Tensor

from models.dispatcher import Dispatched, Dispatcher, Leaving, Outgoing
from models.permutation import count_pairs
from models.router import Routing
from parallel.collective_functions import Among, Gather, Scatter, all_gather


class _Ticket(NamedTuple):
    inner: Any
    """Of what came, and of its leaving, in the inner dispatcher."""
    inner_leaving: Any
    routing: Routing
    """Of all ranks' tokens."""


class GatheredDispatcher:
    """`inner` sees the tokens of all ranks of `among`, which must have the same number of them."""

    def __init__(self, inner: Dispatcher, among: Among) -> None:
        self._inner, self._among = inner, among
        self.placement = inner.placement

    def leaving(self, x_TD: Tensor, routing: Routing) -> Leaving:
        """See Dispatcher: the tokens themselves. Their choices and weights are gathered here."""
        among = self._among
        kept_TK = routing.kept_TK
        whole = Routing(
            experts_TK=among.comm.wait(among.comm.start_all_gather(routing.experts_TK, among.group, among.kind)),
            weights_TK=all_gather(routing.weights_TK, among),
            # As bytes: not every back end has a type for bools.
            kept_TK=None if kept_TK is None else all_gather(kept_TK.byte(), among).bool(),
        )
        counts_E = count_pairs(routing, self.placement.n_experts)
        return Leaving((Outgoing(x_TD, Gather(among), whole),), counts_E, None)

    def arrived(self, rows_ND: Tensor, ticket: Routing) -> Dispatched:
        """See Dispatcher."""
        leaving = self._inner.leaving(rows_ND, ticket)
        (part,) = leaving.parts
        inner = self._inner.arrived(part.begin().arrive(), part.ticket)
        return Dispatched(inner.rows_ND, inner.offsets_E, _Ticket(inner.ticket, leaving.ticket, ticket))

    def returning(self, rows_ND: Tensor, ticket: _Ticket) -> Outgoing:
        """See Dispatcher: partial sums of the tokens."""
        returned_ND = self._inner.returning(rows_ND, ticket.inner).begin().arrive()
        partial_TD = self._inner.returned(returned_ND, ticket.inner_leaving, ticket.routing)
        return Outgoing(partial_TD, Scatter(self._among), None)

    def returned(self, rows_ND: Tensor, ticket: None, routing: Routing) -> Tensor:
        """See Dispatcher."""
        return rows_ND
