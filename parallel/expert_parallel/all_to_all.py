"""Each row to the rank of its expert, and back: an uneven all-to-all (GShard, Lepikhin et al. 2020; dropless).

    rank 0   pairs, sorted by (rank, slot)  │ to 0: 5 rows │ to 1: 3 rows │
    rank 1   pairs, sorted by (rank, slot)  │ to 0: 2 rows │ to 1: 6 rows │
                 counts: all_to_all of one number per slot, while rows are gathered
                 rows:   all_to_all
    rank 0   │ from 0: 5 rows │ from 1: 2 rows │  by (source, slot)  →  by slot  →  experts  →  the same way back

The host must know how many rows come before it can receive them: one wait a layer, which every dispatcher of this kind
pays. Backward is the same exchange the other way.

T tokens, K experts per token, N rows, D model width, E experts of all ranks, s slots of this rank, R ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.dispatcher import Dispatched
from models.permutation import Sorted, count_pairs, from_rows, reorder, sort_pairs, to_rows, weigh
from models.placement import ExpertPlacement
from models.router import Routing
from parallel.collective_functions import Among, all_to_all


class _Ticket(NamedTuple):
    pairs: Sorted
    sent: list[int]
    """Rows to each rank."""
    received: list[int]
    """Rows from each rank."""
    order_N: Tensor
    """From (source, slot) to slot order."""
    inverse_N: Tensor
    """Back."""


class AllToAllDispatcher:
    """Rows of this rank's tokens go to the ranks that `placement` says; this one is `rank` of them."""

    def __init__(self, placement: ExpertPlacement, rank: int, among: Among) -> None:
        self.placement = placement
        self._among = among
        self._slots_of_rank = [len(slots) for slots in placement.slots_of_rank]
        self._n_slots = self._slots_of_rank[rank]
        self._place_of_E: dict[torch.device, Tensor] = {}

    def dispatch(self, x_TD: Tensor, routing: Routing) -> Dispatched:
        n_experts, device = self.placement.n_experts, x_TD.device
        if device not in self._place_of_E:
            self._place_of_E[device] = torch.tensor(self.placement.position_of_expert(), device=device)
        place_N = self._place_of_E[device][routing.experts_TK.flatten()]
        if routing.kept_TK is not None:
            place_N = place_N.masked_fill(~routing.kept_TK.flatten(), n_experts)
        pairs = sort_pairs(place_N, n_experts, routing.kept_TK is not None)
        counts_out_E = pairs.ends_E.diff(prepend=pairs.ends_E.new_zeros(1))

        comm, n_ranks = self._among.comm, len(self._slots_of_rank)
        coming = comm.start_all_to_all(
            counts_out_E, self._slots_of_rank, [self._n_slots] * n_ranks, self._among.group, self._among.kind
        )
        rows_ND = to_rows(x_TD, pairs, routing.experts_TK.shape[1])
        counts_in_Rs = comm.wait(coming).view(n_ranks, self._n_slots)
        sent_R = torch.stack([counts.sum() for counts in counts_out_E.split(self._slots_of_rank)])
        sent, received = torch.stack(
            (sent_R, counts_in_Rs.sum(1))
        ).tolist()  # a wait for the GPU, the only one where no pair is dropped

        arrived_ND = all_to_all(rows_ND, sent, received, self._among)
        slots_Rs = torch.arange(self._n_slots, device=device).repeat(n_ranks)
        slot_N = slots_Rs.repeat_interleave(counts_in_Rs.flatten(), output_size=sum(received))
        order_N = slot_N.argsort(stable=True)
        inverse_N = torch.empty_like(order_N)
        inverse_N[order_N] = torch.arange(len(order_N), device=device)
        offsets_s = counts_in_Rs.sum(0).cumsum(0).int()
        ticket = _Ticket(pairs, sent, received, order_N, inverse_N)
        counts_E = count_pairs(routing, n_experts)
        return Dispatched(reorder(arrived_ND, order_N, inverse_N), offsets_s, counts_E, ticket)

    def combine(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        ticket: _Ticket = dispatched.ticket
        leaving_ND = reorder(rows_ND, ticket.inverse_N, ticket.order_N)
        back_ND = all_to_all(leaving_ND, ticket.received, ticket.sent, self._among)
        return weigh(from_rows(back_ND, ticket.pairs), routing)
