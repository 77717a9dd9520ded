"""Moving tokens to their experts and back: the interface, and the dispatcher that moves nothing between ranks.

    to experts   leaving: rows by rank    →  exchange  →  arrived: rows by slot
    back         returning: rows by rank  →  exchange  →  returned: tokens' sums by weight

An exchange is begun, and arrived at: what stands between hides it. Rows may leave in several parts, each for other
slots: then the experts of one part hide the exchange of the next.

T tokens, K experts per token, N rows, D model width, E experts (here: slots).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from models.permutation import sort_pairs, to_rows
from models.placement import ExpertPlacement
from models.router import Routing
from models.rows import Rows


class Travelling(Protocol):
    """Rows on their way. A tuple with a tensor in it, so that hooks of FSDP2 see that gradients pass."""

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

    def begin(self) -> Travelling:
        """Send them off."""
        return self.exchange.begin(self.rows_ND)


class Leaving(NamedTuple):
    """The rows of this rank's tokens."""

    parts: tuple[Outgoing, ...]
    """Each for other slots (models/placement.py: groups_of_slots)."""
    ticket: Any
    """What the dispatcher that made this needs for `returned`."""


class Dispatched(NamedTuple):
    """Rows sorted by slot, and what it takes to bring them back."""

    rows_ND: Tensor
    """One row per (token, expert) pair that is kept, all of a slot's together; past the last end undefined ones."""
    offsets_E: Tensor
    """int32: the end of each slot's rows."""
    weights_N: Tensor | None
    """By which experts weigh what they make of each row, at least float32; None: `returned` weighs it."""
    ticket: Any
    """What the dispatcher that made this needs for `returning`."""


class Dispatcher(Protocol):
    """Moves rows between tokens and experts; the only reader of the placement table."""

    placement: ExpertPlacement

    def leaving(self, x_TD: Tensor, routing: Routing) -> Leaving:
        """A row for each of a token's K experts, but for the dropped pairs."""

    def arrived(self, rows_ND: Tensor, ticket: Any) -> Dispatched:
        """What came of one part, by slot; `ticket` of its Outgoing."""

    def returning(self, rows_ND: Tensor, ticket: Any) -> Outgoing:
        """The experts' rows of one part, for the way back; `ticket` of its Dispatched."""

    def returned(self, rows_ND: Tensor, ticket: Any, routing: Routing) -> Tensor:
        """The sum of each token's rows, by weight where experts have not weighed them, [T, D]; `rows_ND` of all parts,
        `ticket` of their Leaving."""


class Staying(NamedTuple):
    """Rows that are there."""

    rows_ND: Tensor

    def arrive(self) -> Tensor:
        """See Travelling."""
        return self.rows_ND


def settle(travelling: Sequence[Travelling]) -> tuple[Staying, ...]:
    """Wait for them now: nothing is to hide them."""
    return tuple(Staying(one.arrive()) for one in travelling)


class NoExchange:
    """Between a device and itself."""

    def begin(self, x: Tensor) -> Staying:
        """See Exchange."""
        return Staying(x)


class _Part(NamedTuple):
    offsets_E: Tensor
    weights_N: Tensor


class LocalDispatcher:
    """The experts on this device, in the slots that `placement` says; pairs of experts elsewhere are left out. Weights
    are here too, so experts weigh: the sum of tokens' rows then needs no copy of these for backward.

    How many are left only the device knows. Either the host waits for their number, or there is room for all pairs.
    """

    def __init__(
        self, placement: ExpertPlacement, rank: int = 0, rows: Rows | None = None, room_for_all: bool = False
    ) -> None:
        self.placement, self._rows, self._room_for_all = placement, rows or Rows(), room_for_all
        slots = placement.slots_of_rank[rank]
        self._n_slots, self._all_here = len(slots), len(slots) == placement.n_experts
        self._slot_of_expert = [slots.index(e) if e in slots else len(slots) for e in range(placement.n_experts)]
        # Kept per device: building it in each forward would copy from pageable memory, and that waits for the GPU.
        self._slot_of_E: dict[torch.device, Tensor] = {}

    def leaving(self, x_TD: Tensor, routing: Routing) -> Leaving:
        """Sorted by slot already."""
        if x_TD.device not in self._slot_of_E:
            self._slot_of_E[x_TD.device] = torch.tensor(self._slot_of_expert, device=x_TD.device)
        slot_N = self._slot_of_E[x_TD.device][routing.experts_TK.flatten()]
        if routing.kept_TK is not None:
            slot_N = slot_N.masked_fill(~routing.kept_TK.flatten(), self._n_slots)
        some_have_none = routing.kept_TK is not None or not self._all_here
        pairs = sort_pairs(slot_N, self._n_slots, some_have_none)
        if some_have_none and not self._room_for_all:
            pairs = pairs.cut(int(pairs.ends_E[-1]))
        rows_ND = self._rows.of_tokens(x_TD, pairs, routing.experts_TK.shape[1])
        weights_N = to_rows(routing.weights_TK.reshape(-1, 1), pairs, top_k=1).squeeze(1)
        part = Outgoing(rows_ND, NoExchange(), _Part(pairs.ends_E.int(), weights_N))
        return Leaving((part,), pairs)

    def arrived(self, rows_ND: Tensor, ticket: _Part) -> Dispatched:
        """See Dispatcher."""
        return Dispatched(rows_ND, ticket.offsets_E, ticket.weights_N, None)

    def returning(self, rows_ND: Tensor, ticket: Any) -> Outgoing:
        """See Dispatcher."""
        return Outgoing(rows_ND, NoExchange(), None)

    def returned(self, rows_ND: Tensor, ticket: Any, routing: Routing) -> Tensor:
        """See Dispatcher."""
        return self._rows.summed(rows_ND, ticket, routing.experts_TK.shape[1])
