"""A job's attempts on one axis of time, with what is between them.

An attempt is put beside the latest earlier one with which it shares a boot of a host, by that one's clock, which nobody
can set; without such a one beside the one before it, by the wall clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from train.ledger.alignment import Aligned
from train.ledger.ending import last_sign


@dataclass(frozen=True)
class Placed:
    """One attempt's place."""

    attempt: Aligned
    begin: int
    """By the attempt's own clock."""
    end: int
    at: int
    """Its begin, from the first attempt's."""
    down: int
    """From the last end of all attempts before until its begin; a queue's time is not in it."""
    queued: int
    """In a queue, before its begin."""

    @property
    def span(self) -> int:
        """How long it was."""
        return self.end - self.begin


def place(attempts: Sequence[Aligned], now_ns: int | None, goes_on: bool) -> tuple[list[Placed], list[str]]:
    """All attempts in order, and what is odd about their clocks.

    Args:
        attempts: at least one, in order.
        now_ns: the newest one's end if it `goes_on`, by the clock of its lowest rank; None: the last that it wrote.
        goes_on: whether nothing tells the newest one's end.
    """
    placed: list[Placed] = []
    notes: list[str] = []
    stamps: set[tuple[str, int]] = set()
    latest_end, submitted = 0, None
    for attempt in attempts:
        first = attempt.first
        begin, end = _begin(attempt, stamps), last_sign(attempt)
        if attempt is attempts[-1] and goes_on and now_ns is not None:
            end = max(end, now_ns)
        at = 0
        if placed:
            before = next((one for one in reversed(placed) if _share_a_boot(one.attempt, attempt)), placed[-1])
            gap, by_boot = _gap(before, attempt, begin)
            if gap < 0 and not by_boot:
                notes.append(
                    f"attempt {attempt.number} began {-gap / 1e9:,.1f} s before attempt {before.attempt.number} "
                    "ended, by the wall clocks of two boots: one was set; the time between them counts as none"
                )
                gap = 0
            at = before.at + before.span + gap
            if at < latest_end:
                notes.append(
                    f"attempt {attempt.number} began {(latest_end - at) / 1e9:,.1f} s before the end of an earlier "
                    "one: both are counted"
                )
        room = max(0, at - latest_end) if placed else None
        queued = 0
        if first.submitted is not None and (submitted is None or first.submitted > submitted):
            submitted = first.submitted
            waited = max(0, attempt.wall(begin) - submitted)
            queued = waited if room is None else min(room, waited)
        placed.append(Placed(attempt, begin, end, at, (room or 0) - (queued if placed else 0), queued))
        latest_end = max(latest_end, at + end - begin)
    return placed, notes


def _begin(attempt: Aligned, stamps: set[tuple[str, int]]) -> int:
    """The launcher's stamp, once: whatever it starts again inherits that. Otherwise the first process's begin."""
    process = min(start.process for start in attempt.starts.values())
    first = attempt.first
    inherited = (first.boot, first.launched) in stamps
    # Those of all hosts: rank 0 may be on another one next time.
    stamps |= {
        (start.boot, start.launched - attempt.clock_of_boot[start.boot])
        for start in attempt.starts.values()
        if start.launched is not None
    }
    return process if first.launched is None or inherited else min(process, first.launched)


def _share_a_boot(one: Aligned, other: Aligned) -> bool:
    return not one.clock_of_boot.keys().isdisjoint(other.clock_of_boot)


def _gap(before: Placed, attempt: Aligned, begin: int) -> tuple[int, bool]:
    """From the end of one attempt to the begin of the next; whether by a clock that they share."""
    earlier = before.attempt
    for boot, ahead in attempt.clock_of_boot.items():
        if boot in earlier.clock_of_boot:
            return (begin - ahead) - (before.end - earlier.clock_of_boot[boot]), True
    return attempt.wall(begin) - earlier.wall(before.end), False
