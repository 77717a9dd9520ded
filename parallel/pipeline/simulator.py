"""Runs a schedule on paper: when each cell would start and end, what it waits for, how many activations are alive.

A cell starts when its rank is free and what it needs is there. So a table in an impossible order shows as a deadlock,
and idle time as the bubble.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from parallel.pipeline.action import Action, Cell, Op, Schedule, StageKey, actions_of


class ScheduleError(ValueError):
    """A table that no ranks could run."""


@dataclass(frozen=True)
class Costs:
    """Time of each kind of cell, in any unit."""

    forward: float = 1.0
    input: float = 1.0
    """Gradients of inputs."""
    weight: float = 1.0
    """Gradients of weights; a whole backward is both."""
    pair: float | None = None
    """A forward beside a backward; None: one after the other."""
    send: float = 0.0
    """A message between ranks."""
    shares: tuple[float, ...] = ()
    """[stage]: how many times as large it is as the mean one; empty: all are equal."""

    def of(self, cell: Cell) -> float:
        """Time of `cell`."""
        if not isinstance(cell, Action):
            if self.pair is None:
                return sum(map(self.of, actions_of(cell)))
            forward, backward = self.forward, self.input + self.weight
            scale = forward * self._share(cell.forward) + backward * self._share(cell.backward)
            return self.pair * scale / (forward + backward)
        times = {
            Op.forward: self.forward,
            Op.backward: self.input + self.weight,
            Op.input_backward: self.input,
            Op.weight_backward: self.weight,
        }
        return times[cell.op] * self._share(cell)

    def _share(self, action: Action) -> float:
        return self.shares[action.stage] if self.shares else 1.0


@dataclass(frozen=True)
class Span:
    """One cell in time."""

    cell: Cell
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """A schedule in time."""

    spans: tuple[tuple[Span, ...], ...]
    """[rank]: its cells, in order."""

    @property
    def peak_in_flight(self) -> tuple[int, ...]:
        """[rank]: most micro-batches whose activations are alive at once, one that is in two of its stages twice."""
        return tuple(_peak(row) for row in self.spans)

    @property
    def peak_of_stage(self) -> Mapping[StageKey, int]:
        """Most micro-batches alive at once in each stage; they add up to no less than the peak of their rank."""
        keys = {action.key for row in self.spans for span in row for action in actions_of(span.cell)}
        return {key: max(_peak(row, key) for row in self.spans) for key in sorted(keys)}

    @property
    def makespan(self) -> float:
        return max(row[-1].end for row in self.spans)

    @property
    def busy(self) -> tuple[float, ...]:
        """[rank]: time in which it computes."""
        return tuple(sum(span.end - span.start for span in row) for row in self.spans)

    @property
    def bubble_of_rank(self) -> tuple[float, ...]:
        """[rank]: the idle part of its time, which is as long for all: to the end of the step."""
        return tuple(1 - busy / self.makespan for busy in self.busy)

    @property
    def bubble(self) -> float:
        """The idle part of all ranks' time."""
        return sum(self.bubble_of_rank) / len(self.spans)


def simulate(schedule: Schedule, costs: Costs) -> Simulation:
    """Raises ScheduleError if an action is missing or comes twice, or if ranks would wait for each other for ever."""
    _check_complete(schedule)
    every = frozenset(action for row in schedule.rows for cell in row for action in actions_of(cell))
    done: dict[Action, tuple[float, int]] = {}  # when, and on which rank
    rows: list[list[Span]] = [[] for _ in schedule.rows]
    progress = True
    while progress:
        progress = False
        for rank, row in enumerate(schedule.rows):
            while len(rows[rank]) < len(row):
                cell = row[len(rows[rank])]
                needs = [need for action in actions_of(cell) for need in _needs(action, schedule.n_stages, every)]
                if not all(need in done for need in needs):
                    break
                free = rows[rank][-1].end if rows[rank] else 0.0
                ready = [end + (costs.send if where != rank else 0.0) for end, where in map(done.__getitem__, needs)]
                start = max([free, *ready])
                span = Span(cell, start, start + costs.of(cell))
                rows[rank].append(span)
                done.update((action, (span.end, rank)) for action in actions_of(cell))
                progress = True
    stuck = [(rank, row[len(rows[rank])]) for rank, row in enumerate(schedule.rows) if len(rows[rank]) < len(row)]
    if stuck:
        waits = (
            f"rank {rank} waits at {_text(cell)} for {_missing(cell, schedule.n_stages, every, done)}"
            for rank, cell in stuck
        )
        raise ScheduleError(f"deadlock: {'; '.join(waits)}")
    return Simulation(tuple(map(tuple, rows)))


def _needs(action: Action, n_stages: int, every: frozenset[Action]) -> list[Action]:
    """What must be done before `action`."""
    same = action._replace
    if action.op is Op.forward:
        return [same(stage=action.stage - 1)] if action.stage > 0 else []
    if action.op is Op.weight_backward:
        return [same(op=Op.input_backward)]
    needs = [same(op=Op.forward)]
    if action.stage < n_stages - 1:
        behind = same(stage=action.stage + 1)
        split = behind._replace(op=Op.input_backward)
        needs.append(split if split in every else behind._replace(op=Op.backward))
    return needs


def _check_complete(schedule: Schedule) -> None:
    counts: Counter[tuple[str, int, int, int]] = Counter()
    for rank, row in enumerate(schedule.rows):
        held = schedule.stages_of_rank(rank)
        for cell in row:
            for op, chain, stage, micro_batch in actions_of(cell):
                if (chain, stage) not in held:
                    raise ScheduleError(f"rank {rank} has no stage {stage} of chain {chain}")
                halves = {Op.forward: "F", Op.backward: "IW", Op.input_backward: "I", Op.weight_backward: "W"}[op]
                counts.update((half, chain, stage, micro_batch) for half in halves)
    forward_only = not any(half != "F" for half, *_ in counts)
    per_chain = schedule.n_micro_batches // schedule.n_chains
    for chain in range(schedule.n_chains):
        for stage in range(schedule.n_stages):
            for micro_batch in range(chain * per_chain, (chain + 1) * per_chain):
                for half in "F" if forward_only else "FIW":
                    if (n := counts.pop((half, chain, stage, micro_batch), 0)) != 1:
                        text = _text(Action(Op(half), chain, stage, micro_batch))
                        raise ScheduleError(f"{text} comes {n} times, not once")
    if counts:
        half, chain, stage, micro_batch = next(iter(counts))
        text = _text(Action(Op(half), chain, stage, micro_batch))
        raise ScheduleError(f"{text}: no such micro-batch goes through that chain")


def _peak(row: Sequence[Span], stage: StageKey | None = None) -> int:
    """A micro-batch is alive in a stage from its forward's start to the end of what makes the weights' gradients.

    Without `stage`, all of the row's stages are counted together.
    """
    events = []
    for span in row:
        for action in actions_of(span.cell):
            if stage not in (None, action.key):
                continue
            if action.op is Op.forward:
                events.append((span.start, 1))
            elif action.op is not Op.input_backward:
                events.append((span.end, -1))
    alive = peak = 0
    for _, change in sorted(events):  # at one moment, those that end go first
        alive += change
        peak = max(peak, alive)
    return peak


def _missing(cell: Cell, n_stages: int, every: frozenset[Action], done: Container[Action]) -> str:
    needs = [need for action in actions_of(cell) for need in _needs(action, n_stages, every)]
    return ", ".join(_text(need) for need in needs if need not in done)


def _text(cell: Cell) -> str:
    return " & ".join(f"{a.op.value}{a.micro_batch} in stage {a.stage} of chain {a.chain}" for a in actions_of(cell))
