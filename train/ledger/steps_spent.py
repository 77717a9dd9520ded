"""The steps of one rank's tile, and what became of each."""

from collections.abc import Callable
from dataclasses import dataclass, field

from train.ledger.buckets import COMPUTE, SKIPPED
from train.ledger.proportion import divide, scale
from train.ledger.records import StepsTile

DATA = "data_wait"


@dataclass
class StepsSpent:
    """What is changed while books are made, and forgotten after."""

    first: int
    last: int
    begin: int
    end: int
    buckets: dict[str, int]
    """Of the steps themselves; none is negative."""
    own_ns: list[int]
    """Each step's part of them."""
    warm_up_ns: list[int] = field(init=False)
    """Of that, what it took above the usual at the start of an attempt; none of it waited for data."""
    fate: list[str | None] = field(init=False)
    """The bucket of a step's own time, less warm-up; None: the step stays, and so do its buckets."""

    def __post_init__(self) -> None:
        self.warm_up_ns = [0] * len(self.own_ns)
        self.fate = [None] * len(self.own_ns)

    @classmethod
    def of(cls, tile: StepsTile, buckets: dict[str, int]) -> "StepsSpent":
        """Of a tile whose steps' time is `buckets`: what tracing took above the usual is not among it."""
        n_steps = tile.last - tile.first + 1
        weights = [max(0, ns) for ns in tile.step_ns]
        if len(weights) != n_steps:
            weights = [1] * n_steps
        return cls(tile.first, tile.last, tile.begin, tile.t, buckets, divide(sum(buckets.values()), weights))

    @property
    def warmable_ns(self) -> list[int]:
        """Each step's part less its wait for data, which is known of all steps together: in proportion."""
        return divide(sum(self.buckets.values()) - self.buckets.get(DATA, 0), self.own_ns)

    def skip(self, step: int) -> None:
        """Its update was left out."""
        self.fate[step - self.first] = SKIPPED

    def take_back(self, after: int, bucket_of: Callable[[int], str]) -> None:
        """No step above `after` stays. What was taken back before, stays taken back to what it was."""
        for step in range(max(after + 1, self.first), self.last + 1):
            if self.fate[step - self.first] in (None, SKIPPED):
                self.fate[step - self.first] = bucket_of(step)

    def standing(self, upto: int | None = None) -> list[int]:
        """Steps that stay, up to `upto`."""
        last = self.last if upto is None else min(self.last, upto)
        return [step for step in range(self.first, last + 1) if self.fate[step - self.first] is None]

    def standing_buckets(self, upto: int | None = None) -> dict[str, int]:
        """Nanoseconds of the steps that stay, up to `upto`, without warm-up."""
        standing = self.standing(upto)
        buckets = self.buckets
        if warm_up := sum(self.warm_up_ns):
            others = {name: ns for name, ns in buckets.items() if name != DATA}
            buckets = buckets | scale(others, sum(others.values()) - warm_up)
        if len(standing) == len(self.own_ns):
            return buckets
        return scale(buckets, sum(self.own_ns[i - self.first] - self.warm_up_ns[i - self.first] for i in standing))

    def moved(self) -> dict[str, int]:
        """Nanoseconds of all else."""
        moved = {}
        if warm_up := sum(self.warm_up_ns):
            moved["warmup_compile"] = warm_up
        for fate, own, warm_up in zip(self.fate, self.own_ns, self.warm_up_ns, strict=True):
            if fate is not None:
                moved[fate] = moved.get(fate, 0) + own - warm_up
        return moved


def compute_ns(buckets: dict[str, int]) -> int:
    """Of a step's buckets, those in which the device computes."""
    return sum(buckets.get(name, 0) for name in COMPUTE)
