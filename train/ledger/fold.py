"""The fold: a run's ledger → its books. Pure: the loop, `switchyard goodput` and tests call this one function.

    rank-seconds = Σ over attempts of (its span + what was down, or in a queue, before it) × its ranks

and every one of them is in one bucket, to the nanosecond. A step that is done again counts once: the first time's
becomes `lost_work`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from models.config import ConfigError
from train.ledger.advice import Advice, advise
from train.ledger.alignment import Aligned, align
from train.ledger.books import AttemptBooks, Books, Saves
from train.ledger.buckets import LOST, START_UP
from train.ledger.ending import FAILURES, PREEMPTED, Ending, ending, is_clean
from train.ledger.job_axis import Placed, place
from train.ledger.lineage import Stepped, settle
from train.ledger.read import RankEvents, RunEvents
from train.ledger.records import Committed, Saving, Unsaved
from train.ledger.timeline import Timeline, timeline
from train.ledger.warm_up import take_off_warm_up

NAMED = 8
"""Ranks in a note, at most."""


def fold(events: RunEvents, now_ns: int | None = None, last_word: str | None = None) -> Books:
    """The books of what `events` tell.

    Args:
        events: of a run that goes on, ended or died.
        now_ns: for books of a live run: now, by the clock of its lowest rank (events.now_ns, there). What ranks did
            since they last wrote is `in_progress`. None: the books end where the ledger does.
        last_word: that all ranks of a live run are about to write, as the cause of their exit: the books are those of
            a job that ended so now.

    Raises:
        ConfigError: if no attempt wrote its start.
    """
    attempts = [aligned for attempt in events.attempts if (aligned := align(attempt))]
    if not attempts:
        raise ConfigError("no rank has written its start to the ledger yet: try again in a moment")
    notes = [
        f"attempt {attempt.number} left nothing: its time counts as down, if another attempt followed it"
        for attempt in events.attempts
        if attempt.number not in {aligned.number for aligned in attempts}
    ]
    notes += [note for attempt in attempts if (note := _absent(attempt))]
    endings = [ending(attempt, newest=attempt is attempts[-1]) for attempt in attempts]
    placed, odd = place(attempts, now_ns, goes_on=endings[-1] is None)
    if last_word and endings[-1] is None:
        endings[-1] = Ending(last_word, None, placed[-1].end, clean=is_clean(last_word, attempts[-1]))
    lines = [_timelines(one, ended) for one, ended in zip(placed, endings, strict=True)]
    stepped = [
        Stepped(one.attempt, ended, {rank: own[rank].steps for rank in one.attempt.starts})
        for one, ended, own in zip(placed, endings, lines, strict=True)
    ]
    take_off_warm_up(stepped)
    counted_step, durable_step = settle(stepped)
    books = [_attempt_books(*one, counted_step, durable_step) for one in zip(placed, stepped, lines, strict=True)]
    counted_steps = [_count(one, counted_step) for one in stepped]
    standing_steps = [_count(one, None) for one in stepped]
    tokens = [one.attempt.first.tokens_per_step for one in stepped]
    saves = _saves(stepped, books)
    return Books(
        attempts=tuple(books),
        wall_ns=max(one.at + one.span for one in placed) - min(one.at for one in placed) + placed[0].queued,
        durable_step=durable_step,
        counted_step=counted_step,
        standing_steps=sum(standing_steps),
        counted_tokens=sum(n * each for n, each in zip(counted_steps, tokens, strict=True)),
        standing_tokens=sum(n * each for n, each in zip(standing_steps, tokens, strict=True)),
        ideal_ns=_ideal_ns(stepped, counted_steps),
        saves=saves,
        advice=_advice(stepped, books, lines, saves),
        dropped_lines=events.dropped_lines,
        notes=tuple([*notes, *odd]),
    )


def _absent(attempt: Aligned) -> str | None:
    absent = [str(rank) for rank in range(attempt.size) if rank not in attempt.starts]
    if not absent:
        return None
    named = ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED:,} more" if len(absent) > NAMED else "")
    return f"attempt {attempt.number} has no start of rank {named}: all of its time there counts as init_process"


def _timelines(place: Placed, ended: Ending | None) -> dict[int, Timeline]:
    """By rank, with those that left nothing."""
    attempt = place.attempt
    return {
        rank: timeline(attempt.starts.get(rank), attempt.ranks.get(rank, RankEvents()), place.begin, place.end, ended)
        for rank in range(attempt.size)
    }


def _attempt_books(
    place: Placed, stepped: Stepped, lines: dict[int, Timeline], counted_step: int, durable_step: int
) -> AttemptBooks:
    attempt = place.attempt
    buckets = Counter[str]()
    counted = Counter[str]()
    standing = durable = 0
    for line in lines.values():
        buckets.update(line.fixed)
        for spent in line.steps:
            stays = spent.standing_buckets()
            standing += sum(stays.values())
            _add(stays, buckets)
            _add(spent.moved(), buckets)
            _add(spent.standing_buckets(counted_step), counted)
            durable += sum(spent.standing_buckets(durable_step).values())
    buckets["down"] += place.down * attempt.size
    buckets["queue"] += place.queued * attempt.size
    steps = lines[min(attempt.starts)].steps
    made = [step for spent in steps for step in range(spent.first, spent.last + 1)]
    ended = stepped.ended
    books = AttemptBooks(
        number=attempt.number,
        ranks=attempt.size,
        layout=attempt.first.layout,
        begin_ns=place.at,
        span_ns=place.span,
        down_ns=place.down,
        queue_ns=place.queued,
        cause=ended.cause if ended else None,
        ended_by=ended.rank if ended and not ended.clean else None,
        resumed_after=stepped.resumed.step if stepped.resumed else None,
        first_step=min(made, default=None),
        last_step=max(made, default=None),
        lost_steps=sum((fate or "").startswith(LOST) for spent in steps for fate in spent.fate),
        buckets=dict(buckets),
        standing=standing,
        counted=dict(counted),
        durable=durable,
    )
    assert sum(buckets.values()) == books.total, f"attempt {attempt.number}: {buckets} is not {books.total} ns"
    return books


def _add(buckets: Mapping[str, int], to: Counter[str]) -> None:
    for name, ns in buckets.items():
        to[name] += ns


def _count(stepped: Stepped, upto: int | None) -> int:
    """Steps that stay, up to one of them."""
    return sum(len(spent.standing(upto)) for spent in stepped.steps[min(stepped.attempt.starts)])


def _ideal_ns(stepped: Sequence[Stepped], n_steps: Sequence[int]) -> float | None:
    """What the steps' FLOPs take on one device at peak; None if an attempt that has some knows no peak."""
    ideal_ns = 0.0
    for one, n in zip(stepped, n_steps, strict=True):
        first = one.attempt.first
        if n and not (first.peak_flops and first.flops_per_token):
            return None
        if n and first.peak_flops and first.flops_per_token:
            ideal_ns += n * first.tokens_per_step * first.flops_per_token / first.peak_flops * 1e9
    return ideal_ns


def _saves(stepped: Sequence[Stepped], books: Sequence[AttemptBooks]) -> Saves:
    begun = committed = unsaved = n_bytes = 0
    seconds = 0.0
    for one in stepped:
        own = one.attempt.ranks[min(one.attempt.starts)].own
        begun += sum(isinstance(event, Saving) for event in own)
        whole = [event for _, event in one.attempt.every(Committed)]
        committed += len(whole)
        n_bytes += sum(event.bytes for event in whole)
        seconds += sum(event.seconds for event in whole)
        unsaved += len({event.step for _, event in one.attempt.every(Unsaved)})
    blocked_ns = sum(one.buckets.get("ckpt_save", 0) // one.ranks for one in books)
    return Saves(begun, committed, unsaved, blocked_ns, n_bytes, seconds)


def _advice(
    stepped: Sequence[Stepped], books: Sequence[AttemptBooks], lines: Sequence[dict[int, Timeline]], saves: Saves
) -> Advice:
    steps = [spent for one in stepped for spent in one.steps[min(one.attempt.starts)]]
    stepping_s = sum(spent.end - spent.begin - sum(spent.warm_up_ns) for spent in steps) / 1e9
    restarts_s = []
    for before, after in pairwise(books):
        if before.cause in FAILURES:
            start_up = sum(after.buckets.get(name, 0) for name in START_UP) / after.ranks
            restarts_s.append((before.buckets.get("detect", 0) / before.ranks + after.down_ns + start_up) / 1e9)
    return advise(
        up_s=sum(one.span_ns for one in books) / 1e9,
        failures=sum(one.cause in FAILURES for one in books),
        preemptions=sum(one.cause == PREEMPTED for one in books),
        save_s=saves.blocked_s,
        restart_s=sum(restarts_s) / len(restarts_s) if restarts_s else None,
        step_s=stepping_s / n_steps if (n_steps := sum(len(spent.own_ns) for spent in steps)) else None,
        interval_s=stepping_s / saves.begun if saves.begun and stepping_s else None,
    )
