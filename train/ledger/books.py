"""A run's books: what each rank-second went to, and what that makes of the job. Made by fold.py.

Times are whole nanoseconds in here, so that sums are exact, and seconds in `as_json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train.ledger.advice import Advice
from train.ledger.buckets import LOST, OTHER_ALARM, in_order
from train.ledger.steps_spent import compute_ns
from train.ledger.tiles import UNDIVIDED


@dataclass(frozen=True)
class AttemptBooks:
    """One start of the job."""

    number: int
    ranks: int
    layout: str
    begin_ns: int
    """After the first attempt's begin."""
    span_ns: int
    down_ns: int
    """Before it, since the last end of all earlier ones."""
    queue_ns: int
    """Before it, in a queue."""
    cause: str | None
    """Why it ended (ending.py); None: it goes on, or nothing has told of its end yet."""
    ended_by: int | None
    """Rank whose end came first."""
    resumed_after: int | None
    """Step; 0: from none; None: it did not come so far."""
    first_step: int | None
    last_step: int | None
    lost_steps: int
    """That it made and that were taken back."""
    buckets: dict[str, int]
    """Rank-nanoseconds, `down` and `queue` before it included."""
    standing: int
    """Of those, in steps that stay."""
    counted: dict[str, int]
    """Of those by bucket, in steps that count."""
    durable: int
    """Of those, in steps that are saved."""

    @property
    def total(self) -> int:
        """Rank-nanoseconds."""
        return (self.span_ns + self.down_ns + self.queue_ns) * self.ranks


@dataclass(frozen=True)
class Saves:
    """The checkpoints."""

    begun: int
    committed: int
    unsaved: int
    blocked_ns: int
    """That training stood still for all of them, mean over ranks."""
    bytes: int
    """Of the committed."""
    seconds: float
    """From begin to commit, of the committed together."""

    @property
    def blocked_s(self) -> float | None:
        """Seconds a save; None without one."""
        return self.blocked_ns / self.begun / 1e9 if self.begun else None

    def as_json(self) -> dict[str, Any]:
        """Plain values; what was not measured is absent."""
        found = {"begun": self.begun, "committed": self.committed, "unsaved": self.unsaved, "blocked_s": self.blocked_s}
        if self.committed:
            found |= {"mean_seconds": self.seconds / self.committed, "mean_bytes": self.bytes / self.committed}
        if self.seconds > 0:
            found["gb_per_s"] = self.bytes / self.seconds / 1e9
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Books:
    """Of a run, up to the last that its ledger holds."""

    attempts: tuple[AttemptBooks, ...]
    wall_ns: int
    """From the first submission to a queue, or start, to the end of the last attempt."""
    durable_step: int
    """Steps up to it are saved: in a checkpoint that was committed."""
    counted_step: int
    """Steps up to it count as goodput: those that are saved; of a job that finished, all."""
    standing_steps: int
    """That stay: as many as made the model, if it goes on as it is."""
    counted_tokens: int
    standing_tokens: int
    ideal_ns: float | None
    """Rank-nanoseconds that the counted tokens' FLOPs take at peak; None without a peak."""
    saves: Saves
    advice: Advice
    dropped_lines: int
    notes: tuple[str, ...]

    @property
    def buckets(self) -> dict[str, int]:
        """Rank-nanoseconds of all attempts."""
        return in_order(_sum([attempt.buckets for attempt in self.attempts]))

    @property
    def counted(self) -> dict[str, int]:
        """Rank-nanoseconds of steps that count, by bucket."""
        found = in_order(_sum([attempt.counted for attempt in self.attempts]))
        return {name: ns for name, ns in found.items() if ns}

    @property
    def total(self) -> int:
        """Rank-nanoseconds: each attempt's span and what is before it, times its ranks. Attempts that were alive at
        once count both, and nothing is between them."""
        return sum(attempt.total for attempt in self.attempts)

    @property
    def goes_on(self) -> bool:
        """Whether nothing has told the newest attempt's end."""
        return self.attempts[-1].cause is None

    @property
    def ettr(self) -> float:
        """The part of all rank-seconds that steps took that count (effective training time ratio)."""
        return self._of_total(self._counted)

    @property
    def ettr_durable(self) -> float:
        """The same of steps that are saved: less than `ettr` where a job finished without a last save."""
        return self._of_total(sum(attempt.durable for attempt in self.attempts))

    @property
    def ettr_optimistic(self) -> float:
        """The same of all steps that stay, if all of them come to be saved."""
        return self._of_total(sum(attempt.standing for attempt in self.attempts))

    @property
    def ettr_without_queue(self) -> float:
        """`ettr` of the rank-seconds outside the queue."""
        outside = self.total - sum(attempt.queue_ns * attempt.ranks for attempt in self.attempts)
        return self._counted / outside if outside else 0.0

    @property
    def compute_fraction(self) -> float | None:
        """The part in which devices computed for steps that count: no waits; None if no clock divided them."""
        return None if self.counted.get(UNDIVIDED) else self._of_total(compute_ns(self.counted))

    @property
    def speed_of_light(self) -> float | None:
        """The part that the counted tokens' FLOPs would take at peak: ettr × mfu_in_step."""
        return None if self.ideal_ns is None else self._of_total(self.ideal_ns)

    @property
    def mfu_in_step(self) -> float | None:
        """The counted tokens' FLOPs ÷ what devices could do at peak in those steps' time."""
        return None if self.ideal_ns is None or not self._counted else self.ideal_ns / self._counted

    @property
    def tokens_per_sec(self) -> float:
        """Counted tokens ÷ wall."""
        return self.counted_tokens / self.wall_ns * 1e9 if self.wall_ns else 0.0

    @property
    def tokens_per_sec_optimistic(self) -> float:
        """Tokens of all steps that stay ÷ wall."""
        return self.standing_tokens / self.wall_ns * 1e9 if self.wall_ns else 0.0

    @property
    def other_fraction(self) -> float:
        """The residual's part, signed."""
        return self._of_total(self.buckets["other"])

    @property
    def alarms(self) -> list[str]:
        """What is wrong with these books."""
        if abs(self.other_fraction) <= OTHER_ALARM:
            return []
        return [f"other is {self.other_fraction:.1%} of all rank-seconds: so much is in no bucket, and should not be"]

    @property
    def causes(self) -> dict[str, int]:
        """Rank-nanoseconds of lost work by cause, where there are any."""
        return {name.removeprefix(LOST): ns for name, ns in self.buckets.items() if name.startswith(LOST) and ns}

    def as_json(self) -> dict[str, Any]:
        """Plain values: seconds, and rank-seconds in buckets. What could not be measured is absent."""
        values = {
            "state": "open" if self.goes_on else self.attempts[-1].cause,
            "wall_s": self.wall_ns / 1e9,
            "ranks": self.attempts[-1].ranks,
            "rank_seconds": self.total / 1e9,
            "buckets": _seconds(self.buckets),
            "ettr": self.ettr,
            "ettr_durable": self.ettr_durable,
            "ettr_optimistic": self.ettr_optimistic,
            "ettr_without_queue": self.ettr_without_queue,
            "compute_fraction": self.compute_fraction,
            "speed_of_light": self.speed_of_light,
            "mfu_in_step": self.mfu_in_step,
            "tokens_per_sec": self.tokens_per_sec,
            "tokens_per_sec_optimistic": self.tokens_per_sec_optimistic,
            "durable_step": self.durable_step,
            "counted_step": self.counted_step,
            "counted_tokens": self.counted_tokens,
            "optimistic_steps": self.standing_steps,
            "optimistic_tokens": self.standing_tokens,
            "lost_work": _seconds(self.causes),
            "attempts": [self._attempt(attempt) for attempt in self.attempts],
            "checkpoints": self.saves.as_json(),
            "advice": self.advice.as_json(),
            "other_fraction": self.other_fraction,
            "dropped_lines": self.dropped_lines,
            "notes": [*self.alarms, *self.notes],
        }
        return {name: value for name, value in values.items() if value is not None}

    def _attempt(self, attempt: AttemptBooks) -> dict[str, Any]:
        return {
            "attempt": attempt.number,
            "ranks": attempt.ranks,
            "layout": attempt.layout,
            "begin_s": attempt.begin_ns / 1e9,
            "span_s": attempt.span_ns / 1e9,
            "down_s": attempt.down_ns / 1e9,
            "queue_s": attempt.queue_ns / 1e9,
            "cause": attempt.cause or "open",
            "ended_by_rank": attempt.ended_by,
            "resumed_after_step": attempt.resumed_after,
            "first_step": attempt.first_step,
            "last_step": attempt.last_step,
            "lost_steps": attempt.lost_steps,
            "ettr": self._of_total(sum(attempt.counted.values())),
            "buckets": {name: s for name, s in _seconds(in_order(attempt.buckets)).items() if s},
        }

    @property
    def _counted(self) -> int:
        return sum(self.counted.values())

    def _of_total(self, ns: float) -> float:
        return ns / self.total if self.total else 0.0


def _sum(buckets: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for one in buckets for name in one)
    return {name: sum(one.get(name, 0) for one in buckets) for name in names}


def _seconds(buckets: dict[str, int]) -> dict[str, float]:
    return {name: ns / 1e9 for name, ns in buckets.items()}
