"""How an attempt ended: what came first of all that its ranks and their watchers wrote of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.ledger.alignment import Aligned
from train.ledger.buckets import LOST
from train.ledger.events import KILLED
from train.ledger.records import Exit, Gone, Hang, Seen, Stop

FINISHED, PREEMPTED, FENCED = "finished", "preempted", "fenced"
AGREED = (PREEMPTED, "stopped")
"""Last words of a rank that ended because all had agreed to; or preempted, because its time to end ran out."""
CRASH, HANG, VANISHED = "crash", "hang", "vanished"
"""vanished: nothing saw the end, and another attempt followed; a host was lost, or everything on it killed at once."""
LOST_PEERS = "lost_peers"
"""Last words of a rank whose collective failed: by another's end, at once, or by the collective's timeout."""
AT_ONCE_NS = 5_000_000_000
"""Where peers see an end before its own stamp comes, by clocks put beside each other: it is not later than that."""
FAILURES = (CRASH, HANG, VANISHED)
"""Ends that nobody meant."""
LOST_TO = {
    HANG: "hang",
    FINISHED: "unsaved",
    PREEMPTED: "preempt",
    "stopped": "preempt",
    FENCED: "fenced",
    "diverged": "nan",
    "interrupted": "interrupt",
}
"""What takes back the steps of an attempt that ended so; all else is a crash."""
_CAUSE_OF_WORDS = {"failed": CRASH, LOST_PEERS: CRASH}


@dataclass(frozen=True)
class Ending:
    """Of one attempt."""

    cause: str
    """crash, hang, vanished, or a rank's last words: finished, preempted, stopped, refused, diverged, fenced, …"""
    rank: int | None
    """Whose end came first; None if nothing saw it."""
    progress: int
    """Until then the ranks got on."""
    clean: bool
    """Whether all ranks were done, or agreed to end."""

    @property
    def lost_to(self) -> str:
        """The bucket of its steps that do not stay."""
        return LOST + LOST_TO.get(self.cause, "crash")


def ending(attempt: Aligned, newest: bool) -> Ending | None:
    """How `attempt` ended; None if it goes on, as far as its ledger knows."""
    hangs = attempt.every(Hang)
    exits = {rank: event for rank, event in reversed(attempt.every(Exit))}
    in_time = all(event.code != KILLED for event in exits.values())
    ends = [(event.t, rank, event.cause) for rank, event in exits.items()]
    ends += [(event.t, rank, HANG) for rank, event in hangs]
    accounted = exits.keys() | {rank for rank, _ in hangs}
    ends += [(event.t, rank, CRASH) for rank, event in attempt.every(Gone) if rank not in accounted]
    if not ends:
        return None if newest else Ending(VANISHED, None, last_sign(attempt), clean=False)
    t, rank, cause = _first(ends)
    if cause == HANG:
        t = _last_beat(hangs, t)
    elif cause == LOST_PEERS:  # perhaps minutes after anything got on: a host went away, and a collective waited for it
        t = _last_beat([*hangs, *attempt.every(Gone)], t)
    return Ending(_CAUSE_OF_WORDS.get(cause, cause), rank, t, in_time and is_clean(cause, attempt))


def is_clean(cause: str, attempt: Aligned) -> bool:
    """Whether ranks that end with that last word were done, or agreed to end."""
    return cause == FINISHED or (cause in AGREED and bool(attempt.every(Stop)))


def _first(ends: Sequence[tuple[int, int, str]]) -> tuple[int, int, str]:
    """That its peers went away is a rank's last word after something else: a hang, or what came with it or before."""
    first = min(ends)
    others = [end for end in ends if end[2] == HANG or (end[2] != LOST_PEERS and end[0] <= first[0] + AT_ONCE_NS)]
    return min(others, default=first)


def _last_beat(seen: Sequence[tuple[int, Seen]], t: int) -> int:
    """The latest phase's begin that watchers saw until `t`; `t` if none saw any."""
    return max((min(event.beat.t, t) for _, event in seen if event.beat), default=t)


def last_sign(attempt: Aligned) -> int:
    """When anything was written of the attempt last."""
    return max(event.t for events in attempt.ranks.values() for event in (*events.own, *events.watched))
