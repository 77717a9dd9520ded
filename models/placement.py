"""Where experts live: a table from logical expert to (rank, slot).

Router and checkpoint speak logical ids; only a dispatcher reads the table. No code may assume `id // experts_per_rank`,
so that an expert can be moved by writing a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class ExpertPlacement:
    """`slots_of_rank[r][s]` is the logical expert in slot s of expert-parallel rank r; every expert has one slot."""

    slots_of_rank: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        experts = sorted(expert for slots in self.slots_of_rank for expert in slots)
        if experts != list(range(len(experts))):
            raise ValueError(f"a placement must hold every expert 0 … {len(experts) - 1} once, got {experts}")

    @classmethod
    def contiguous(cls, n_experts: int, n_ranks: int = 1) -> Self:
        """Experts in order, the same number on every rank.

        Raises:
            ValueError: if `n_ranks` does not divide `n_experts`.
        """
        per_rank = _per_rank(n_experts, n_ranks)
        return cls(tuple(tuple(range(r * per_rank, (r + 1) * per_rank)) for r in range(n_ranks)))

    @classmethod
    def round_robin(cls, n_experts: int, n_ranks: int) -> Self:
        """Experts dealt out like cards, expert e to rank e mod n_ranks: neighbours, a group say, are on many ranks.

        Raises:
            ValueError: if `n_ranks` does not divide `n_experts`.
        """
        _per_rank(n_experts, n_ranks)
        return cls(tuple(tuple(range(r, n_experts, n_ranks)) for r in range(n_ranks)))

    @classmethod
    def on_one_rank(cls, experts: Sequence[int]) -> Self:
        """All experts on one rank, in the given order of slots."""
        return cls((tuple(experts),))

    @property
    def n_experts(self) -> int:
        return sum(len(slots) for slots in self.slots_of_rank)

    def position_of_expert(self) -> list[int]:
        """For each logical expert its place when ranks' slots are laid end to end: what tokens are sorted by."""
        flat = [expert for slots in self.slots_of_rank for expert in slots]
        position = [0] * len(flat)
        for place, expert in enumerate(flat):
            position[expert] = place
        return position


def groups_of_slots(n_slots: int, n_groups: int) -> list[int]:
    """Sizes of `n_groups` groups of neighbouring slots, as equal as can be."""
    return [(group + 1) * n_slots // n_groups - group * n_slots // n_groups for group in range(n_groups)]


def _per_rank(n_experts: int, n_ranks: int) -> int:
    if n_experts % n_ranks:
        raise ValueError(f"{n_experts} experts do not divide over {n_ranks} ranks")
    return n_experts // n_ranks
