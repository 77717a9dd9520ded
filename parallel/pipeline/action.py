"""What a schedule is made of: forward, backward, and the two halves of a backward, of one micro-batch in one stage.

A *chain* is one copy of the model cut into stages. Every schedule has one, but for DualPipe, which has two that run
against each other over the same ranks. Micro-batches are numbered over both.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Op(Enum):
    forward = "F"
    backward = "B"
    input_backward = "I"
    weight_backward = "W"


class StageKey(NamedTuple):
    """A stage of a chain: stage 0 takes tokens, the last one computes the loss."""

    chain: int
    stage: int


class Action(NamedTuple):
    """One computation."""

    op: Op
    chain: int
    stage: int
    micro_batch: int

    @property
    def key(self) -> StageKey:
        return StageKey(self.chain, self.stage)


class Pair(NamedTuple):
    """A forward and a backward of two micro-batches, one cell: each may hide the other's communication."""

    forward: Action
    backward: Action


class Transfer(NamedTuple):
    """One message between two pipeline ranks."""

    send: bool
    gradient: bool
    """False: the activation that the forward of `stage` needs; True: the gradient that its backward needs."""
    chain: int
    stage: int
    """The stage that receives."""
    micro_batch: int
    peer: int
    """The other pipeline rank."""


Cell = Action | Pair


def actions_of(cell: Cell) -> tuple[Action, ...]:
    """The actions of a cell, in the order in which they run if nothing runs them side by side."""
    return (cell,) if isinstance(cell, Action) else (cell.forward, cell.backward)


@dataclass(frozen=True)
class Schedule:
    """What every pipeline rank computes, in order."""

    name: str
    n_micro_batches: int
    rank_of_stage: tuple[tuple[int, ...], ...]
    """[chain][stage]: the pipeline rank that holds it."""
    rows: tuple[tuple[Cell, ...], ...]
    """[rank]: what it computes."""

    @property
    def n_ranks(self) -> int:
        return len(self.rows)

    @property
    def n_stages(self) -> int:
        """Of each chain."""
        return len(self.rank_of_stage[0])

    @property
    def n_chains(self) -> int:
        return len(self.rank_of_stage)

    @property
    def splits_backward(self) -> bool:
        """Whether weight gradients are computed apart from input gradients anywhere."""
        cells = (cell for row in self.rows for cell in row)
        return any(action.op is Op.weight_backward for cell in cells for action in actions_of(cell))

    def stages_of_rank(self, rank: int) -> tuple[StageKey, ...]:
        """What `rank` holds."""
        return tuple(
            StageKey(chain, stage)
            for chain, ranks in enumerate(self.rank_of_stage)
            for stage, holder in enumerate(ranks)
            if holder == rank
        )
