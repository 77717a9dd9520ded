"""Whether a rank hangs, and whether it is the one to blame. Knows no files and no processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from train.faults.beat import LastBeat

LONGEST_STRIDE_S = 2.0
"""What is counted at most between two looks: a machine that slept, or a job that was frozen, has not hung meanwhile."""
YIELD_S = 20.0
"""How long a rank that waits, as it seems, for another is left to be ended by that one's death."""


@dataclass
class Patience:
    """How long a rank was seen in its phase."""

    seen_s: float = 0.0
    _beat: LastBeat | None = field(default=None, init=False)
    _looked: float | None = field(default=None, init=False)

    def look(self, beat: LastBeat | None, now: float) -> float:
        """Seconds that `beat` is known for; `now` by a monotonic clock."""
        if beat != self._beat:
            self._beat, self.seen_s = beat, 0.0
        elif self._looked is not None:
            self.seen_s += min(now - self._looked, LONGEST_STRIDE_S)
        self._looked = now
        return self.seen_s


class Verdict(Enum):
    """On a rank."""

    fine = "fine"
    waits = "waits"
    """Overdue; but another rank is in its phase for longer."""
    hangs = "hangs"


def overdue(seen_s: float, limit_s: float) -> bool:
    """Whether a rank is in its phase for longer than it may be; a limit of 0 is none."""
    return limit_s != 0 and seen_s > limit_s


def judge(rank: int, beats: Mapping[int, LastBeat], stopped: frozenset[int], seen_s: float, limit_s: float) -> Verdict:
    """The verdict on `rank`.

    Args:
        rank: one of `beats`.
        beats: of this host's ranks, which one clock stamps; of no other than `rank` unless it is overdue.
        stopped: ranks that stand still by a signal, whatever their beat says.
        seen_s: how long it is in its phase.
        limit_s: how long it may be; 0 for ever.
    """
    if not overdue(seen_s, limit_s):
        return Verdict.fine
    to_blame = min(beats, key=lambda other: (other not in stopped, beats[other].t))
    return Verdict.hangs if to_blame == rank or seen_s > limit_s + YIELD_S else Verdict.waits
