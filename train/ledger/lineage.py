"""Which steps stay: a resume takes back all later steps of earlier attempts, a rollback those of its own too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from train.ledger.alignment import Aligned
from train.ledger.buckets import LOST
from train.ledger.ending import FINISHED, Ending
from train.ledger.records import Committed, Resumed, Rollback, Skipped
from train.ledger.steps_spent import StepsSpent

NON_FINITE = "non_finite"
"""The cause of a rollback after steps whose updates were left out (train/faults/non_finite.py)."""


@dataclass(frozen=True)
class Stepped:
    """An attempt and what its ranks stepped."""

    attempt: Aligned
    ended: Ending | None
    steps: Mapping[int, list[StepsSpent]]
    """By rank, in the order in which they ran."""
    resumed: Resumed | None = field(init=False)
    """From where; None if it never came that far."""

    def __post_init__(self) -> None:
        every = self.attempt.every(Resumed)
        first = min((spent.first for own in self.steps.values() for spent in own[:1]), default=None)
        implied = None if first is None else Resumed(0, first - 1, ())
        object.__setattr__(self, "resumed", every[0][1] if every else implied)

    @property
    def lost_to(self) -> str:
        """The bucket of what it did and that is taken back."""
        return self.ended.lost_to if self.ended else LOST + "crash"


def settle(attempts: Sequence[Stepped]) -> tuple[int, int]:
    """Give each step its fate. Returns the last step that counts, and the last that is durable: saved. They differ
    where a job finished, of which nothing is at risk any more.

    What an attempt had not saved when it ended is lost, whether or not another has resumed yet; of one that goes on it
    stays, at risk.
    """
    durable = 0
    for index, one in enumerate(attempts):
        for rank, steps in one.steps.items():
            for skipped in one.attempt.of_rank(rank, Skipped):
                _skip(steps, skipped)
        if one.resumed:
            durable = one.resumed.step
            corrupt = max(one.resumed.passed_over, default=0)
            _take_back(attempts[:index], durable, corrupt)
        for rank, steps in one.steps.items():
            for back in one.attempt.of_rank(rank, Rollback):
                for spent in steps:
                    if spent.begin < back.t:
                        spent.take_back(back.step, _lost_to(back))
        backs = [back for _, back in one.attempt.every(Rollback)]
        for back in backs:
            for earlier in attempts[:index]:
                _each(earlier, back.step, _lost_to(back))
        turns: list[Committed | Rollback] = [*backs, *(committed for _, committed in one.attempt.every(Committed))]
        for turn in sorted(turns, key=lambda turn: turn.t):
            durable = max(durable, turn.step) if isinstance(turn, Committed) else min(durable, turn.step)
    newest = attempts[-1].ended
    if newest and newest.cause == FINISHED:
        stand = (spent.standing() for one in attempts for own in one.steps.values() for spent in own)
        return max((step for steps in stand for step in steps[-1:]), default=durable), durable
    _take_back([one for one in attempts if one.ended], durable, 0)
    return durable, durable


def _take_back(attempts: Sequence[Stepped], after: int, corrupt: int) -> None:
    """Steps above `after`; those up to `corrupt` were in checkpoints that turned out damaged."""
    for one in attempts:
        _each(one, after, partial(_why, corrupt, one.lost_to))


def _each(attempt: Stepped, after: int, bucket_of: Callable[[int], str]) -> None:
    for steps in attempt.steps.values():
        for spent in steps:
            spent.take_back(after, bucket_of)


def _skip(steps: Sequence[StepsSpent], event: Skipped) -> None:
    ran = [spent for spent in steps if spent.first <= event.step <= spent.last and spent.begin <= event.t]
    for spent in ran[-1:]:
        spent.skip(event.step)


def _why(corrupt: int, lost_to: str, step: int) -> str:
    return LOST + "ckpt_corrupt" if step <= corrupt else lost_to


def _lost_to(back: Rollback) -> Callable[[int], str]:
    corrupt = max(back.passed_over or (), default=0)
    return partial(_why, corrupt, LOST + ("nan" if back.cause == NON_FINITE else back.cause))
