"""One rank's attempt as a sequence of parts that leave nothing out: from the attempt's begin to its end."""

from collections import Counter
from dataclasses import dataclass, field

from parallel.clock.phase_clock import OF_A_STEP
from train.ledger.buckets import BETWEEN, START_UP, is_of_steps
from train.ledger.ending import Ending
from train.ledger.read import RankEvents
from train.ledger.records import Beat, Resumed, Seen, Start, StepsTile, Tile
from train.ledger.steps_spent import StepsSpent


@dataclass
class Timeline:
    """Its time, in nanoseconds; with the steps' buckets it sums to end − begin exactly."""

    begin: int
    end: int
    fixed: Counter[str] = field(default_factory=Counter)
    """What is no step's."""
    steps: list[StepsSpent] = field(default_factory=list)
    """In the order in which they ran."""

    def __post_init__(self) -> None:
        self._now = self.begin

    def until(self, t: int, bucket: str) -> int:
        """From where it is until `t` it is in `bucket`. Returns how long that is."""
        t = min(max(t, self._now), self.end)
        ns, self._now = t - self._now, t
        self.fixed[bucket] += ns
        return ns

    def tile(self, tile: Tile) -> None:
        """A part that the rank divided itself. What clocks made negative by their rounding is the residual's."""
        self.until(tile.begin, "other")
        self.until(tile.t, "other")
        buckets = {name: ns for name, ns in tile.buckets.items() if ns > 0 and name != "other"}
        of_steps = {name: ns for name, ns in buckets.items() if is_of_steps(name)}
        between = {name: ns for name, ns in buckets.items() if name not in of_steps}
        # Taken from the residual, which was given all of the tile: it may be left with less than nothing.
        self.fixed["other"] -= sum(between.values())
        self.fixed.update(between)
        if isinstance(tile, StepsTile):
            self.fixed["other"] -= sum(of_steps.values())
            self.steps.append(StepsSpent.of(tile, of_steps))


def timeline(start: Start | None, events: RankEvents, begin: int, end: int, ended: Ending | None) -> Timeline:
    """The time of one rank in an attempt from `begin` to `end`; without a `start` it never came to do anything."""
    line = Timeline(begin, end)
    if start is None:
        line.until(end, "init_process")
        return line
    line.until(start.main, "init_process")
    line.until(start.joined, "init_dist")
    for event in events.own:
        if isinstance(event, Tile):
            line.tile(event)
    if ended is None:
        line.until(end, "in_progress")
    elif ended.clean:
        line.until(end, "shutdown")
    else:
        _cut_short(line, events, ended)
        line.until(end, "detect")
    return line


def _cut_short(line: Timeline, events: RankEvents, ended: Ending) -> None:
    """From the last that the rank wrote until nothing got on any more."""
    beats = [event.beat for event in events.watched if isinstance(event, Seen) and event.beat]
    beat = beats[-1] if beats else _unseen(events)
    if beat.phase in BETWEEN or (line.steps and beat.phase in START_UP):  # a load after steps is that of a rollback
        before = _unseen(events).phase
        line.until(min(beat.t, ended.progress), before if before in START_UP else ended.lost_to)
    line.until(ended.progress, beat.phase if beat.phase in (*BETWEEN, *START_UP) else ended.lost_to)


def _unseen(events: RankEvents) -> Beat:
    """What a rank without a watcher was at, from what it had done."""
    if any(isinstance(event, Resumed | StepsTile) for event in events.own):
        phase = OF_A_STEP[0].value
    else:
        phase = "ckpt_load" if any(isinstance(event, Tile) for event in events.own) else "init_model"
    return Beat(phase, 0, 0)
