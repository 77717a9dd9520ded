"""A knob's two sides, compared: what it hid, in which order it did, what that gave and what it cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from launch.bench.result import Spread
from launch.loss_difference import loss_difference
from launch.overlap.knobs import KNOBS, Value
from launch.overlap.side import EXPOSED, OPTIMIZER, Losses, Side, Step
from train.trace.issue_order import Begun

NOISE = 3
"""How many times as far as two jobs with the knob off two others may be apart and count as explained by what those are:
kernels that add in no fixed order. One such difference and the largest of several are rarely the same."""


@dataclass(frozen=True)
class Order:
    """The collectives of one kind in one step; of `compute_opt`, the updates of weights."""

    n: int
    covered: int | None
    """Of how many compute of ours ran between start and wait, or how many updates began before backward's last product;
    None where the trace tells of none of them."""

    @classmethod
    def of(cls, step: Step | None, bucket: str) -> "Order | None":
        """None if there are none in `step` that are of that `bucket`."""
        if step is None:
            return None
        if bucket == OPTIMIZER:
            covered, n = step.updates
            return cls(n, covered) if n else None
        of_kind = [one for one in step.begun if one.kind == kind_of(bucket)]
        told = [one.between for one in of_kind if one.between is not None]
        return cls(len(of_kind), sum(between > 0 for between in told) if told else None) if of_kind else None


@dataclass(frozen=True)
class Hidden:
    """One bucket of a step, off and on: a kind of communication, mostly."""

    bucket: str
    claimed: bool
    """Whether the knob says that it makes this one shorter."""
    total_s: float | None
    """Seconds a step of its kernels with the knob on, hidden or not; None where no kernels were seen."""
    alone_s: float | None
    """Of these, seconds in which nothing was computed; of what is no communication, what is exposed. None where no
    kernels were seen."""
    exposed_off_s: float | None
    """None, as the next one, where no round is done."""
    exposed_on_s: float | None
    order_off: Order | None
    order_on: Order | None
    earlier: int | None
    """Collectives that on issued with less compute before them than off; None where the two are not as many."""

    @property
    def hidden(self) -> float | None:
        """The part of the total that had compute beside it, both of the same step of the same rank: kernels that last
        because another rank is late are in both, so that no skew counts as hidden. None without a total."""
        return _less(self.alone_s, self.total_s)

    @property
    def taken_off(self) -> float | None:
        """The part of what was exposed off that the knob hid; below 0 if it exposed more. None if nothing was."""
        return _less(self.exposed_on_s, self.exposed_off_s)

    @property
    def there(self) -> bool:
        """Whether a step has any of it."""
        return any((self.total_s, self.exposed_off_s, self.exposed_on_s, self.order_off, self.order_on))


@dataclass(frozen=True)
class LossDifference:
    """How far the losses of the two sides are apart."""

    most: float
    """Largest over all logged steps of all jobs; infinite where one side alone was not finite."""
    step: int | None
    """Where it was, if there was one."""
    n_steps: int
    """That were compared, in the job that logs most."""
    of_itself: float | None
    """The same between two jobs that were off; None with fewer than two. Not of two that were on: a race would excuse
    itself."""
    sums: str | None
    """What the knob adds up in another order, as it says itself."""

    @property
    def reason(self) -> str | None:
        """Why it is not 0, as far as it can be known here; None if it is, or there is no reason for it."""
        if self.most == 0 or math.isinf(self.most):
            return None
        if self.of_itself is not None and self.most <= NOISE * self.of_itself:
            return f"two jobs with it off differ by {self.of_itself:.1e}, and up to {NOISE} times that is no difference"
        return f"another order of summation, {self.sums} (next to 0 with precision=fp64)" if self.sums else None


@dataclass(frozen=True)
class Proof:
    """All of one knob."""

    name: str
    off: Value
    on: Value
    hidden: list[Hidden]
    """What it claims to hide first, then the other kinds of communication."""
    ratio: Spread | None
    """Tokens/s on over off, over the rounds that have both."""
    memory_gib: float | None
    """Peak on less peak off."""
    losses: LossDifference | None
    """None if the sides have no step in common."""

    @classmethod
    def of(cls, name: str, values: tuple[Value, Value], off: Side, on: Side) -> "Proof":
        """Of the two sides of the knob `name`, off and on by `values`."""
        ratios = [on.speeds[number] / off.speeds[number] for number in off.speeds if number in on.speeds]
        apart = None
        if off.memory_gib is not None and on.memory_gib is not None:
            apart = on.memory_gib - off.memory_gib
        return cls(
            name,
            *values,
            hidden=_hidden(KNOBS[name].hides, off, on),
            ratio=Spread.of(ratios) if ratios else None,
            memory_gib=apart,
            losses=compare_losses(off.losses, on.losses, KNOBS[name].sums),
        )


def _less(part: float | None, whole: float | None) -> float | None:
    """What is gone of the whole where a part is left; None where either is not known, or there was nothing."""
    return 1 - part / whole if part is not None and whole else None


def kind_of(bucket: str) -> str | None:
    """The kind of communication that a bucket is of; None if it is of none."""
    return bucket.removeprefix(EXPOSED) if bucket.startswith(EXPOSED) else None


def _hidden(claimed: Sequence[str], off: Side, on: Side) -> list[Hidden]:
    """Of what is claimed, whatever of it there is; and of the other kinds of communication."""
    steps = [side.step for side in (off, on) if side.step]
    kinds = {f"{EXPOSED}{one.kind}" for step in steps for one in step.begun}
    seen = {bucket for side in (off, on) for bucket in side.exposed_s if kind_of(bucket)}
    rows = [_row(bucket, True, off, on) for bucket in claimed]
    others = [_row(bucket, False, off, on) for bucket in sorted((seen | kinds) - set(claimed))]
    return ([row for row in rows if row.there] or rows[:1]) + others


def _row(bucket: str, claimed: bool, off: Side, on: Side) -> Hidden:
    total = on.step.total_s.get(bucket) if on.step and on.step.total_s else None
    exposed_on_s = on.exposed_s.get(bucket, 0.0) if on.exposed_s else None
    alone_s = exposed_on_s
    if kind_of(bucket):
        alone_s = on.step.alone_s.get(bucket, 0.0) if on.step and on.step.alone_s is not None else None
    return Hidden(
        bucket,
        claimed,
        total_s=total,
        alone_s=alone_s,
        exposed_off_s=off.exposed_s.get(bucket, 0.0) if off.exposed_s else None,
        exposed_on_s=exposed_on_s,
        order_off=Order.of(off.step, bucket),
        order_on=Order.of(on.step, bucket),
        earlier=issued_earlier(off.step.begun, on.step.begun, kind_of(bucket)) if off.step and on.step else None,
    )


def issued_earlier(off: Sequence[Begun], on: Sequence[Begun], kind: str | None) -> int | None:
    """How many collectives of `kind` were issued on with less compute before them than off: each operation's n-th, and
    the n-th of the other side. None if there are none, or not as many on both sides."""
    sides = [[(one.operation, one.after) for one in begun if one.kind == kind] for begun in (off, on)]
    # A stable sort: those of one operation stay in the order in which they were issued.
    before, after = (sorted(side, key=lambda one: one[0]) for side in sides)
    if not before or [operation for operation, _ in before] != [operation for operation, _ in after]:
        return None
    return sum(later > sooner for (_, later), (_, sooner) in zip(before, after, strict=True))


def compare_losses(off: Mapping[int, Losses], on: Mapping[int, Losses], sums: str | None) -> LossDifference | None:
    """Of the jobs of two sides, by round; None if they have no step in common."""
    apart = [_apart(off[number], on[number]) for number in off if number in on]
    most, step, _ = max(apart, key=lambda one: one[0], default=(0.0, None, 0))
    n_steps = max((n for _, _, n in apart), default=0)
    own = [difference for difference, _, n in (_apart(*two) for two in combinations(off.values(), 2)) if n]
    return LossDifference(most, step, n_steps, max(own, default=None), sums) if n_steps else None


def _apart(one: Losses, other: Losses) -> tuple[float, int | None, int]:
    """The largest difference, its step if there is a difference, and how many steps were compared."""
    differences = {step: loss_difference(one[step], other[step]) for step in _shared(one, other)}
    step = max(differences, key=differences.__getitem__, default=None)
    most = differences[step] if step is not None else 0.0
    return most, step if most else None, len(differences)


def _shared(one: Losses, other: Losses) -> Iterable[int]:
    return [step for step in one if step in other]
