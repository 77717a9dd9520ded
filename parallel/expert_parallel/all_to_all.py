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

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from models.dispatcher import Dispatched, Outgoing
from models.permutation import Sorted, count_pairs, from_rows, reorder, sort_pairs, to_rows, weigh
from models.placement import ExpertPlacement
from models.router import Routing
from parallel.collective_functions import Among, Exchange
from parallel.comm import Pending


class RowCounts:
    """How many rows this rank sends to each rank, and how many come from each, once their exchange is over."""

    def __init__(self, out_E: Tensor, slots_of_rank: Sequence[int], rank: int, among: Among) -> None:
        """`out_E`: rows of this rank's tokens by slot, of all ranks. Begins to exchange them."""
        self._out_E, self._slots_of_rank, self._among = out_E, list(slots_of_rank), among
        self._shape = (len(slots_of_rank), slots_of_rank[rank])
        received = [slots_of_rank[rank]] * len(slots_of_rank)
        self._coming = among.comm.start_all_to_all(out_E, self._slots_of_rank, received, among.group, among.kind)

    @cached_property
    def in_Rs(self) -> Tensor:
        """Rows that come, by the rank that sends them and slot."""
        return self._among.comm.wait(self._coming).view(self._shape)

    @cached_property
    def sent_and_received(self) -> tuple[list[int], list[int]]:
        """Rows to each rank and from each. Waits for the GPU, the only time where no pair is dropped."""
        sent_R = torch.stack([counts.sum() for counts in self._out_E.split(self._slots_of_rank)])
        sent, received = torch.stack((sent_R, self.in_Rs.sum(1))).tolist()
        return sent, received


class RowExchange(Exchange):
    """Rows to the ranks of their experts, or `back`. Asks for the counts when it is begun, and not before."""

    def __init__(self, counts: RowCounts, among: Among, back: bool) -> None:
        self.counts, self.among, self._back = counts, among, back

    def start(self, x: Tensor) -> Pending:
        return self._start(x, self._back)

    def start_back(self, grad: Tensor) -> Pending:
        return self._start(grad, not self._back)

    def _start(self, rows_ND: Tensor, back: bool) -> Pending:
        sent, received = self.counts.sent_and_received
        if back:
            sent, received = received, sent
        return self.among.comm.start_all_to_all(rows_ND, sent, received, self.among.group, self.among.kind)


class _Leaving(NamedTuple):
    pairs: Sorted
    counts: RowCounts
    counts_E: Tensor
    """Pairs of this rank's tokens, by logical expert."""


class _Ticket(NamedTuple):
    pairs: Sorted
    counts: RowCounts
    order_N: Tensor
    """From (source, slot) to slot order."""
    inverse_N: Tensor
    """Back."""


class AllToAllDispatcher:
    """Rows of this rank's tokens go to the ranks that `placement` says; this one is `rank` of them."""

    def __init__(self, placement: ExpertPlacement, rank: int, among: Among) -> None:
        self.placement = placement
        self._rank, self._among = rank, among
        self._slots_of_rank = [len(slots) for slots in placement.slots_of_rank]
        self._place_of_E: dict[torch.device, Tensor] = {}

    def outgoing(self, x_TD: Tensor, routing: Routing) -> Outgoing:
        """See Dispatcher. Their counts travel while rows are gathered."""
        n_experts, device = self.placement.n_experts, x_TD.device
        if device not in self._place_of_E:
            self._place_of_E[device] = torch.tensor(self.placement.position_of_expert(), device=device)
        place_N = self._place_of_E[device][routing.experts_TK.flatten()]
        if routing.kept_TK is not None:
            place_N = place_N.masked_fill(~routing.kept_TK.flatten(), n_experts)
        pairs = sort_pairs(place_N, n_experts, routing.kept_TK is not None)
        out_E = pairs.ends_E.diff(prepend=pairs.ends_E.new_zeros(1))
        counts = RowCounts(out_E, self._slots_of_rank, self._rank, self._among)
        rows_ND = to_rows(x_TD, pairs, routing.experts_TK.shape[1])
        ticket = _Leaving(pairs, counts, count_pairs(routing, n_experts))
        return Outgoing(rows_ND, RowExchange(counts, self._among, back=False), ticket)

    def arrived(self, rows_ND: Tensor, outgoing: Outgoing) -> Dispatched:
        """See Dispatcher."""
        leaving: _Leaving = outgoing.ticket
        in_Rs = leaving.counts.in_Rs
        slots_Rs = torch.arange(in_Rs.shape[1], device=rows_ND.device).repeat(len(in_Rs))
        slot_N = slots_Rs.repeat_interleave(in_Rs.flatten(), output_size=len(rows_ND))
        order_N = slot_N.argsort(stable=True)
        inverse_N = torch.empty_like(order_N)
        inverse_N[order_N] = torch.arange(len(order_N), device=order_N.device)
        ticket = _Ticket(leaving.pairs, leaving.counts, order_N, inverse_N)
        by_slot_ND = reorder(rows_ND, order_N, inverse_N)
        return Dispatched(by_slot_ND, in_Rs.sum(0).cumsum(0).int(), leaving.counts_E, ticket)

    def returning(self, rows_ND: Tensor, dispatched: Dispatched) -> Outgoing:
        """See Dispatcher."""
        ticket: _Ticket = dispatched.ticket
        leaving_ND = reorder(rows_ND, ticket.inverse_N, ticket.order_N)
        return Outgoing(leaving_ND, RowExchange(ticket.counts, self._among, back=True), None)

    def returned(self, rows_ND: Tensor, dispatched: Dispatched, routing: Routing) -> Tensor:
        """See Dispatcher."""
        ticket: _Ticket = dispatched.ticket
        return weigh(from_rows(rows_ND, ticket.pairs), routing)
