"""Moving tokens to their experts and back: the interface, and the dispatcher that moves nothing between ranks.

    dispatch   outgoing: rows in the order of ranks  →  exchange  →  arrived: rows by slot
    combine    returning: rows as they came          →  exchange  →  returned: weighted sums

An exchange is begun, and arrived at: what stands between hides it.

T tokens, K experts per token, N rows, D model width, E experts (here: slots).
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from models.permutation import count_pairs, from_rows, sort_pairs, to_rows, weigh
from models.placement import ExpertPlacement
from models.router import Routing


class Travelling(Protocol):
    """Rows on their way."""

    def arrive(self) -> Tensor:
        """Wait for them. Once."""


class Exchange(Protocol):
    """How rows travel, one way; gradients go the other way."""

    def begin(self, x: Tensor) -> Travelling:
        """Send them off."""


class Outgoing(NamedTuple):
    """Rows that are ready to travel."""

    rows_ND: Tensor
    exchange: Exchange
    ticket: Any
    """What the dispatcher that made this needs once they are there."""


class Dispatched(NamedTuple):
    """Rows sorted by slot, and what it takes to bring them back."""

    rows_ND: Tensor
    """One row per (token, expert) pair that is kept, all of a slot's rows together."""
    offsets_E: Tensor
    """int32: the end of each slot's rows."""
    counts_E: Tensor
    """int64: pairs of *this rank's tokens* that are kept, per logical expert of all ranks."""
    ticket: Any
    """What the dispatcher that made this needs to bring them back."""


class Dispatcher(Protocol):
    """Moves rows between tokens and experts; the only reader of the placement table."""

    placement: ExpertPlacement

    def outgoing(self, x_TD: Tensor, routing: Routing) -> Outgoing:
        """A row for each of a token's K experts, but for the dropped pairs."""

    def arrived(self, rows_ND: Tensor, outgoing: Outgoing) -> Dispatched:
        """What came of them, by slot."""

    def returning(self, rows_ND: Tensor, dispatched: Dispatched) -> Outgoing:
        """The experts' rows, on their way back."""

    def returned(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        """The sum of each token's rows by weight: [T, D]."""


def dispatch(dispatcher: Dispatcher, x_TD: Tensor, routing: Routing) -> Dispatched:
    """Send each token's row to its K experts, and wait for those that come here."""
    outgoing = dispatcher.outgoing(x_TD, routing)
    return dispatcher.arrived(outgoing.exchange.begin(outgoing.rows_ND).arrive(), outgoing)


def combine(dispatcher: Dispatcher, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
    """Bring the experts' rows back, wait for them, and sum each token's by weight: [T, D]."""
    returning = dispatcher.returning(rows_ND, dispatched)
    return dispatcher.returned(returning.exchange.begin(returning.rows_ND).arrive(), dispatched, routing)


class Staying(NamedTuple):
    """Rows that need not travel."""

    rows_ND: Tensor

    def arrive(self) -> Tensor:
        """See Travelling."""
        return self.rows_ND


class NoExchange:
    """Between a device and itself."""

    def begin(self, x: Tensor) -> Staying:
        """See Exchange."""
        return Staying(x)


class LocalDispatcher:
    """The experts on this device, in the slots that `placement` says; pairs of experts elsewhere are left out."""

    def __init__(self, placement: ExpertPlacement, rank: int = 0) -> None:
        self.placement = placement
        slots = placement.slots_of_rank[rank]
        self._n_slots, self._all_here = len(slots), len(slots) == placement.n_experts
        self._slot_of_expert = [slots.index(e) if e in slots else len(slots) for e in range(placement.n_experts)]
        # Kept per device: building it in each forward would copy from pageable memory, and that waits for the GPU.
        self._slot_of_E: dict[torch.device, Tensor] = {}

    def outgoing(self, x_TD: Tensor, routing: Routing) -> Outgoing:
        """Sorted by slot already."""
        if x_TD.device not in self._slot_of_E:
            self._slot_of_E[x_TD.device] = torch.tensor(self._slot_of_expert, device=x_TD.device)
        slot_N = self._slot_of_E[x_TD.device][routing.experts_TK.flatten()]
        if routing.kept_TK is not None:
            slot_N = slot_N.masked_fill(~routing.kept_TK.flatten(), self._n_slots)
        some_have_none = routing.kept_TK is not None or not self._all_here
        pairs = sort_pairs(slot_N, self._n_slots, some_have_none)
        rows_ND = to_rows(x_TD, pairs, routing.experts_TK.shape[1])
        counts_E = count_pairs(routing, self.placement.n_experts)
        return Outgoing(rows_ND, NoExchange(), Dispatched(rows_ND, pairs.ends_E.int(), counts_E, pairs))

    def arrived(self, rows_ND: Tensor, outgoing: Outgoing) -> Dispatched:
        """See Dispatcher."""
        dispatched: Dispatched = outgoing.ticket
        return dispatched

    def returning(self, rows_ND: Tensor, dispatched: Dispatched) -> Outgoing:
        """See Dispatcher."""
        return Outgoing(rows_ND, NoExchange(), None)

    def returned(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        """See Dispatcher."""
        return weigh(from_rows(rows_ND, dispatched.ticket), routing)
