"""All tokens of a group of ranks to each of them; what they make of the tokens, partial sums, is added up.

    dispatch   x [T, D], choices, weights  → all_gather →  [R·T, D]  → inner dispatcher
    combine    inner dispatcher → [R·T, D], this rank's part of each sum  → reduce_scatter →  [T, D]

Over expert-parallel ranks, each of which then takes the pairs of its own slots: R·T rows travel where all-to-all sends
K·T, so it pays while few ranks share many experts per token, and nothing is uneven. Over tensor-parallel ranks that
split experts by width: each takes all pairs, and makes a part of every row.

T tokens of this rank, R ranks, K experts per token, D model width.
"""

from typing import NamedTuple

from torch import Tensor

from models.dispatcher import Dispatched, Dispatcher
from models.permutation import count_pairs
from models.router import Routing
from parallel.collective_functions import Among, all_gather, reduce_scatter


class _Ticket(NamedTuple):
    inner: Dispatched
    routing: Routing
    """Of all ranks' tokens."""


class GatheredDispatcher:
    """`inner` sees the tokens of all ranks of `among`, which must have the same number of them."""

    def __init__(self, inner: Dispatcher, among: Among) -> None:
        self._inner, self._among = inner, among
        self.placement = inner.placement

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Dispatched:
        among = self._among
        kept_TK = routing.kept_TK
        whole = Routing(
            experts_TK=among.comm.wait(among.comm.start_all_gather(routing.experts_TK, among.group, among.kind)),
            weights_TK=all_gather(routing.weights_TK, among),
            # As bytes: not every back end has a type for bools.
            kept_TK=None if kept_TK is None else all_gather(kept_TK.byte(), among).bool(),
        )
        inner = self._inner.dispatch(all_gather(x_TD, among), whole)
        counts_E = count_pairs(routing, self.placement.n_experts)
        return Dispatched(inner.rows_ND, inner.offsets_E, counts_E, _Ticket(inner, whole))

    def combine(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        ticket: _Ticket = dispatched.ticket
        return reduce_scatter(self._inner.combine(rows_ND, ticket.inner, ticket.routing), self._among)
