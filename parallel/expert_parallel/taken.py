"""Tokens to the ranks that have experts of theirs, out of the memory of their own (parallel/peer_memory.py).

    dispatch   weights and choices [T, 2K] → all_gather → [R·T, 2K] → who wants what
               x [T, D]       → taken, a token once by each rank that has an expert of its →  [R·T, D], with gaps
    combine    [R·T, D], this rank's part of each sum, where it has one  → taken, added up →  [T, D]

As many bytes as an exchange of rows without repetition, and nothing is counted: a row lies where all_gather would have
it, and what lies in the gaps nobody reads. Backward is the same two the other way.

T tokens of this rank, R ranks, N = R·T of all, K experts per token, D model width, E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.placement import ExpertPlacement
from parallel.collective_functions import Among, Exchange
from parallel.comm import Pending
from parallel.expert_parallel.gathered import Ways
from parallel.peer_memory import PeerMemory, Taking


class _Tables:
    """On the device, and of the side stream alone."""

    def __init__(self, placement: ExpertPlacement) -> None:
        slots_of_rank = placement.slots_of_rank
        self._rank_of_expert = [0] * placement.n_experts + [-1]  # the last one's number is also -1, a dropped pair's
        for rank, slots in enumerate(slots_of_rank):
            for expert in slots:
                self._rank_of_expert[expert] = rank
        self._n_ranks = len(slots_of_rank)
        self._made: tuple[Tensor, Tensor] | None = None

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rank of each expert, and all ranks as [R, 1, 1]; both int32. Made once: that waits for the GPU."""
        if self._made is None:
            ranks_R = torch.arange(self._n_ranks, dtype=torch.int32, device=device)
            self._made = torch.tensor(self._rank_of_expert, dtype=torch.int32, device=device), ranks_R[:, None, None]
        return self._made


class Wanted:
    """Which tokens are wanted where; each is read on the side stream."""

    def __init__(self, tables: _Tables, among: Among) -> None:
        self._tables, self._group = tables, among.group
        self._message: tuple[Tensor, Pending] | None = None
        self._by_me_RT: Tensor | None = None
        self._by_others_RT: Tensor | None = None

    def choices_left(self, sent_TC: Tensor, pending: Pending) -> None:
        """Choices, beside weights, are on their way."""
        self._message = sent_TC, pending

    def read(self) -> tuple[Tensor, ...]:
        """By the first call of `by_me`, on the side stream: what left and what comes."""
        return () if self._message is None else (self._message[0], self._message[1].output)

    def by_me(self) -> Tensor:
        """Of all ranks' tokens those that have an expert here, uint8 [R, T]."""
        if self._message is not None:
            # Holds this stream: no wait of the one that computes, which the clock would bracket.
            self._message[1].work.wait()
            self._find(self._message[1].output)
            self._message = None
        assert self._by_me_RT is not None, "choices left first"
        return self._by_me_RT

    def by_others(self) -> Tensor:
        """Of this rank's tokens those that each rank has an expert of, uint8 [R, T]."""
        assert self._by_others_RT is not None, "tokens came first"
        return self._by_others_RT

    def _find(self, both_NC: Tensor) -> None:
        rank_of_E, ranks_R11 = self._tables.on(both_NC.device)
        rank, n_ranks = self._group.rank(), self._group.size()
        rank_RTK = rank_of_E[both_NC.chunk(2, dim=1)[1].long()].unflatten(0, (n_ranks, -1))
        self._by_me_RT = (rank_RTK == rank).any(2).view(torch.uint8)
        self._by_others_RT = (rank_RTK[rank] == ranks_R11).any(2).view(torch.uint8)


@dataclass(frozen=True)
class Taken(Exchange):
    """As Gather, of the rows that are wanted: undefined are the others, and their gradients may be. Or, if `sums`, as
    Scatter, over the ranks that have a part of a sum: of the others' parts nothing is read."""

    among: Among
    memory: PeerMemory
    wanted: Wanted
    sums: bool

    def start(self, x: Tensor) -> Pending:
        return self._sums(x) if self.sums else self._rows(x)

    def start_back(self, grad: Tensor) -> Pending:
        return self._rows(grad) if self.sums else self._sums(grad)

    def _rows(self, x_TD: Tensor) -> Pending:
        def start() -> tuple[Tensor, Taking]:
            return self.memory.take(x_TD, self.wanted.by_me, *self.wanted.read())

        return self.among.comm.start_own("all_gather_wanted", x_TD, self.among.group, self.among.kind, start)

    def _sums(self, partial_ND: Tensor) -> Pending:
        def start() -> tuple[Tensor, Taking]:
            return self.memory.add_up(partial_ND, self.wanted.by_others)

        return self.among.comm.start_own("reduce_scatter_wanted", partial_ND, self.among.group, self.among.kind, start)


class TakenWays:
    """For each layer anew: what GatheredDispatcher asks for."""

    def __init__(self, placement: ExpertPlacement, among: Among, memory: PeerMemory) -> None:
        self._tables, self._among, self._memory = _Tables(placement), among, memory

    def __call__(self) -> Ways:
        wanted = Wanted(self._tables, self._among)
        there, back = (Taken(self._among, self._memory, wanted, sums) for sums in (False, True))
        return Ways(there, back, wanted.choices_left)
