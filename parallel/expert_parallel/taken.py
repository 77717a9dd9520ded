"""Tokens to the ranks that have experts of theirs, out of the memory of their own (parallel/peer_memory.py).

    dispatch   weights and choices [T, 2K] → all_gather → [R·T, 2K]
               x [T, D]       → taken, a token once by each rank that has an expert of its →  [R·T, D], with gaps
    combine    [R·T, D], this rank's part of each sum, where it has one  → taken, added up →  [T, D]

As many bytes as an exchange of rows without repetition, and nothing is counted: a row lies where all_gather would have
it, and what lies in the gaps nobody reads. Backward is the same two the other way.

T tokens of this rank, R ranks, K experts per token, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.placement import ExpertPlacement
from parallel.collective_functions import Among, Exchange
from parallel.comm import Pending
from parallel.expert_parallel.gathered import Ways
from parallel.peer_memory import Chosen, PeerMemory, Taking, Wanted


@dataclass(frozen=True)
class Taken(Exchange):
    """As Gather, of the rows that are wanted: undefined are the others, and their gradients may be. Or, if `sums`, as
    Scatter, over the ranks that have a part of a sum: of the others' parts nothing is read."""

    among: Among
    memory: PeerMemory
    chosen: Chosen
    wanted: Wanted
    """Found out when tokens leave."""
    sums: bool

    def start(self, x: Tensor) -> Pending:
        return self._sums(x) if self.sums else self._rows(x, self.chosen)

    def start_back(self, grad: Tensor) -> Pending:
        return self._rows(grad, None) if self.sums else self._sums(grad)

    def _rows(self, x_TD: Tensor, chosen: Chosen | None) -> Pending:
        def start() -> tuple[Tensor, Taking]:
            return self.memory.take(x_TD, self.wanted, chosen)

        return self.among.comm.start_own("all_gather_wanted", x_TD, self.among.group, self.among.kind, start)

    def _sums(self, partial_ND: Tensor) -> Pending:
        def start() -> tuple[Tensor, Taking]:
            return self.memory.add_up(partial_ND, self.wanted)

        return self.among.comm.start_own("reduce_scatter_wanted", partial_ND, self.among.group, self.among.kind, start)


class TakenWays:
    """For each layer anew: what GatheredDispatcher asks for."""

    def __init__(self, placement: ExpertPlacement, among: Among, memory: PeerMemory) -> None:
        self._placement, self._among, self._memory = placement, among, memory
        self._rank_of_E: Tensor | None = None

    def __call__(self, choices_TK: Tensor) -> Ways:
        slots_of_rank = self._placement.slots_of_rank
        if self._rank_of_E is None:  # once: the host waits for the GPU
            rank_of = {expert: rank for rank, slots in enumerate(slots_of_rank) for expert in slots}
            ranks = [rank_of[expert] for expert in range(self._placement.n_experts)]
            self._rank_of_E = torch.tensor(ranks, dtype=torch.int32, device=choices_TK.device)
        shape_RT = len(slots_of_rank), len(choices_TK)
        wanted = Wanted(*(choices_TK.new_empty(shape_RT, dtype=torch.uint8) for _ in range(2)))
        chosen = Chosen(choices_TK, self._rank_of_E)
        return Ways(*(Taken(self._among, self._memory, chosen, wanted, sums) for sums in (False, True)))
