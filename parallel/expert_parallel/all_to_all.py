"""Each row to the rank of its expert, and back: an uneven all-to-all (GShard, Lepikhin et al. 2020; dropless).

    rank 0   pairs, sorted by (rank, slot)  │ to 0: 5 rows │ to 1: 3 rows │
    rank 1   pairs, sorted by (rank, slot)  │ to 0: 2 rows │ to 1: 6 rows │
                 counts: all_to_all of one number per slot, while rows are gathered
                 rows:   all_to_all
    rank 0   │ from 0: 5 rows │ from 1: 2 rows │  by (source, slot)  →  by slot  →  experts  →  the same way back

The host must know how many rows come before it can receive them: one wait a layer, which every dispatcher of this kind
pays. Backward is the same exchange the other way.

In several parts, rows go by group of slots before rank: the slots of one group, on all ranks, are computed while the
rows of the next one travel (Tutel, Hwang et al. 2023, cuts tokens instead: each expert would then compute smaller
products, and add up its weights' gradient part by part).

    comm      to group 0 │ to group 1        │ back from 0          │ back from 1
    compute              │ experts of 0      │ experts of 1         │

T tokens, K experts per token, N rows, D model width, E experts of all ranks, s slots of this rank, R ranks, G groups.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from models.dispatcher import Dispatched, Leaving, Outgoing
from models.permutation import Sorted, reorder, sort_pairs, transpose_blocks
from models.placement import ExpertPlacement, groups_of_slots
from models.router import Routing
from models.rows import Rows
from parallel.collective_functions import Among, Exchange
from parallel.comm import Pending


class RowCounts:
    """How many rows this rank sends to each rank, and how many come from each, once their exchange is over."""

    def __init__(self, out_E: Tensor, slots_of_rank: Sequence[int], n_groups: int, rank: int, among: Among) -> None:
        """`out_E`: rows of this rank's tokens by slot, of all ranks in turn. Begins to exchange them."""
        self._out_E, self._slots_of_rank, self._among = out_E, list(slots_of_rank), among
        self._groups_of_rank = [groups_of_slots(n, n_groups) for n in slots_of_rank]
        self._rank = rank
        received = [slots_of_rank[rank]] * len(slots_of_rank)
        self._coming = among.comm.start_all_to_all(out_E, self._slots_of_rank, received, among.group, among.kind)
        self._on_host: tuple[Tensor, torch.cuda.Event] | None = None

    def begin_reading(self) -> None:
        """On CUDA, copy them to the host, on the stream that is current: beside the one that computes, which the host
        then need not wait for. Nothing if they are on their way already."""
        if self._on_host is not None or "sent_and_received" in vars(self):
            return
        self._coming.work.wait()  # holds this stream: no wait of the one that computes, which the clock would bracket
        counts = self._sums(self._split(self._coming.output))
        on_host = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
        on_host.copy_(counts, non_blocking=True)
        self._on_host = on_host, torch.cuda.current_stream(counts.device).record_event()

    @cached_property
    def in_GRs(self) -> tuple[Tensor, ...]:
        """Rows that come, by group, the rank that sends them, and slot."""
        return self._split(self._among.comm.wait(self._coming))

    @cached_property
    def sent_and_received(self) -> list[list[list[int]]]:
        """By group: rows to each rank, and from each. Waits for the GPU, the only time."""
        if self._on_host is None:
            sums = self._sums(self.in_GRs)
        else:
            sums, read = self._on_host
            read.synchronize()
        counts: list[list[list[int]]] = sums.tolist()
        return counts

    def _split(self, in_E: Tensor) -> tuple[Tensor, ...]:
        return in_E.view(len(self._slots_of_rank), -1).split(self._groups_of_rank[self._rank], dim=1)

    def _sums(self, in_GRs: Sequence[Tensor]) -> Tensor:
        """[groups, 2, ranks]: sent and received."""
        out_RGs = [
            of_rank.split(groups)
            for of_rank, groups in zip(self._out_E.split(self._slots_of_rank), self._groups_of_rank, strict=True)
        ]
        sent_GR = torch.stack(
            [torch.stack([rows.sum() for rows in of_group]) for of_group in zip(*out_RGs, strict=True)]
        )
        received_GR = torch.stack([in_Rs.sum(1) for in_Rs in in_GRs])
        return torch.stack((sent_GR, received_GR), dim=1)


class RowExchange(Exchange):
    """A group's rows to the ranks of their experts, or `back`. Asks for the counts when it is begun, and not before."""

    def __init__(self, counts: RowCounts, group: int, among: Among, back: bool) -> None:
        self.counts, self.among, self._group, self._back = counts, among, group, back

    def prepare(self) -> None:
        self.counts.begin_reading()

    def start(self, x: Tensor) -> Pending:
        return self._start(x, self._back)

    def start_back(self, grad: Tensor) -> Pending:
        return self._start(grad, not self._back)

    def _start(self, rows_ND: Tensor, back: bool) -> Pending:
        sent, received = self.counts.sent_and_received[self._group]
        if back:
            sent, received = received, sent
        return self.among.comm.start_all_to_all(rows_ND, sent, received, self.among.group, self.among.kind)


class _Part(NamedTuple):
    counts: RowCounts
    group: int


class _Ticket(NamedTuple):
    part: _Part
    order_N: Tensor
    """From (source, slot) to slot order."""
    inverse_N: Tensor
    """Back."""


class AllToAllDispatcher:
    """Rows of this rank's tokens go to the ranks that `placement` says; this one is `rank` of them."""

    def __init__(
        self, placement: ExpertPlacement, rank: int, among: Among, n_parts: int = 1, rows: Rows | None = None
    ) -> None:
        """`n_parts`: in how many they leave."""
        self.placement, self._rows = placement, rows or Rows()
        self._rank, self._among, self._n_parts = rank, among, n_parts
        self._slots_of_rank = [len(slots) for slots in placement.slots_of_rank]
        self._positions = _by_group(self._slots_of_rank, n_parts)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def leaving(self, x_TD: Tensor, routing: Routing) -> Leaving:
        """See Dispatcher. Their counts travel while rows are gathered; where pairs are dropped, these are waited for
        first: they say how many are left."""
        n_experts = self.placement.n_experts
        place_of_E, place_of_position_E = self._places(x_TD.device)
        place_N = place_of_E[routing.experts_TK.flatten()]
        if routing.kept_TK is not None:
            place_N = place_N.masked_fill(~routing.kept_TK.flatten(), n_experts)
        pairs = sort_pairs(place_N, n_experts, routing.kept_TK is not None)
        out_E = pairs.ends_E.diff(prepend=pairs.ends_E.new_zeros(1))
        if self._n_parts > 1:
            out_E = out_E[place_of_position_E]
        counts = RowCounts(out_E, self._slots_of_rank, self._n_parts, self._rank, self._among)
        if pairs.some_have_none:
            pairs = pairs.cut(sum(sum(sent) for sent, _ in counts.sent_and_received))
        rows_ND = self._rows.of_tokens(x_TD, pairs, routing.experts_TK.shape[1])
        parts_ND = (rows_ND,)
        if self._n_parts > 1:
            parts_ND = rows_ND.split([sum(sent) for sent, _ in counts.sent_and_received])
        parts = [
            Outgoing(rows_ND, RowExchange(counts, group, self._among, back=False), _Part(counts, group))
            for group, rows_ND in enumerate(parts_ND)
        ]
        return Leaving(tuple(parts), pairs)

    def arrived(self, rows_ND: Tensor, ticket: _Part) -> Dispatched:
        """See Dispatcher."""
        in_Rs = ticket.counts.in_GRs[ticket.group]
        order_N, inverse_N = transpose_blocks(in_Rs, len(rows_ND))
        offsets_s = in_Rs.sum(0).cumsum(0).int()
        # Weights stay at home: a message more, and another back, for what combine weighs in the pass that adds up.
        return Dispatched(reorder(rows_ND, order_N, inverse_N), offsets_s, None, _Ticket(ticket, order_N, inverse_N))

    def returning(self, rows_ND: Tensor, ticket: _Ticket) -> Outgoing:
        """See Dispatcher."""
        leaving_ND = reorder(rows_ND, ticket.inverse_N, ticket.order_N)
        exchange = RowExchange(ticket.part.counts, ticket.part.group, self._among, back=True)
        return Outgoing(leaving_ND, exchange, None)

    def returned(self, rows_ND: Tensor, ticket: Sorted, routing: Routing) -> Tensor:
        """See Dispatcher."""
        return self._rows.weighed(rows_ND, ticket, routing)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """In the order in which rows leave, the place of each expert, and of each slot of all ranks in turn."""
        if device not in self._tables:
            place_of_position_E = torch.tensor(self._positions, device=device).argsort()
            place_of_E = place_of_position_E[torch.tensor(self.placement.position_of_expert(), device=device)]
            self._tables[device] = place_of_E, place_of_position_E
        return self._tables[device]


def _by_group(slots_of_rank: Sequence[int], n_groups: int) -> list[int]:
    """All ranks' slots, numbered rank by rank, in the order of group, then rank."""
    groups_of_rank = []
    for first, n_slots in zip(accumulate(slots_of_rank, initial=0), slots_of_rank, strict=False):
        ends = list(accumulate(groups_of_slots(n_slots, n_groups), initial=first))
        groups_of_rank.append([range(*bounds) for bounds in pairwise(ends)])
    return [slot for of_group in zip(*groups_of_rank, strict=True) for slots in of_group for slot in slots]
