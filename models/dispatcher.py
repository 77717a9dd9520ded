"""Moving tokens to their experts and back: the interface, and the dispatcher that moves nothing between ranks.

T tokens, K experts per token, N rows, D model width, E experts (here: slots).
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from models.permutation import count_pairs, from_rows, sort_pairs, to_rows, weigh
from models.placement import ExpertPlacement
from models.router import Routing


class Dispatched(NamedTuple):
    """Rows sorted by slot, and what it takes to bring them back."""

    rows_ND: Tensor
    """One row per (token, expert) pair that is kept, all of a slot's rows together."""
    offsets_E: Tensor
    """int32: the end of each slot's rows."""
    counts_E: Tensor
    """int64: pairs of *this rank's tokens* that are kept, per logical expert of all ranks."""
    ticket: Any
    """What the dispatcher that made this needs for `combine`."""


class Dispatcher(Protocol):
    """Moves rows between tokens and experts; the only reader of the placement table."""

    placement: ExpertPlacement

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Dispatched:
        """Send each token's row to its K experts, but for the dropped pairs."""

    def combine(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        """Bring the experts' rows back and sum each token's by weight: [T, D]."""


class LocalDispatcher:
    """The experts on this device, in the slots that `placement` says; pairs of experts elsewhere are left out."""

    def __init__(self, placement: ExpertPlacement, rank: int = 0) -> None:
        self.placement = placement
        slots = placement.slots_of_rank[rank]
        self._n_slots, self._all_here = len(slots), len(slots) == placement.n_experts
        self._slot_of_expert = [slots.index(e) if e in slots else len(slots) for e in range(placement.n_experts)]
        # Kept per device: building it in each forward would copy from pageable memory, and that waits for the GPU.
        self._slot_of_E: dict[torch.device, Tensor] = {}

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Dispatched:
        if x_TD.device not in self._slot_of_E:
            self._slot_of_E[x_TD.device] = torch.tensor(self._slot_of_expert, device=x_TD.device)
        slot_N = self._slot_of_E[x_TD.device][routing.experts_TK.flatten()]
        if routing.kept_TK is not None:
            slot_N = slot_N.masked_fill(~routing.kept_TK.flatten(), self._n_slots)
        some_have_none = routing.kept_TK is not None or not self._all_here
        pairs = sort_pairs(slot_N, self._n_slots, some_have_none)
        rows_ND = to_rows(x_TD, pairs, routing.experts_TK.shape[1])
        counts_E = count_pairs(routing, self.placement.n_experts)
        return Dispatched(rows_ND, pairs.ends_E.int(), counts_E, pairs)

    def combine(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        return weigh(from_rows(rows_ND, dispatched.ticket), routing)
