"""A ledger's lines as they are read back: one dataclass an event, with the fields that events.py promises."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Optional, Self


@dataclass(frozen=True)
class Beat:
    """What a rank was at, as its watcher saw it last."""

    phase: str
    step: int
    t: int


@dataclass(frozen=True)
class Event:
    """Any event; of an unknown kind, that it was is all that is kept."""

    t: int

    def shifted(self, ns: int) -> Self:
        """The same by a clock that shows `ns` more."""
        return replace(self, t=self.t + ns)


@dataclass(frozen=True)
class Start(Event):
    """A rank's first line."""

    ranks: int
    boot: str
    wall: int
    process: int
    main: int
    joined: int
    launched: Optional[int]
    submitted: Optional[int]
    layout: str
    tokens_per_step: int
    flops_per_token: Optional[float]
    peak_flops: Optional[float]

    def shifted(self, ns: int) -> Self:
        """See Event."""
        launched = None if self.launched is None else self.launched + ns
        moved = replace(super().shifted(ns), process=self.process + ns, main=self.main + ns, joined=self.joined + ns)
        return replace(moved, launched=launched)


@dataclass(frozen=True)
class Resumed(Event):
    """From which step, 0 from none."""

    step: int
    passed_over: tuple[int, ...]


@dataclass(frozen=True)
class Tile(Event):
    """A part of an attempt's time."""

    begin: int
    buckets: dict[str, int]

    def shifted(self, ns: int) -> Self:
        """See Event."""
        return replace(super().shifted(ns), begin=self.begin + ns)


@dataclass(frozen=True)
class StepsTile(Tile):
    """One of steps."""

    first: int
    last: int
    step_ns: tuple[int, ...]


@dataclass(frozen=True)
class Skipped(Event):
    """A step whose update was left out."""

    step: int


@dataclass(frozen=True)
class Rollback(Event):
    """To the checkpoint after `step`."""

    step: int
    cause: str
    passed_over: Optional[tuple[int, ...]]
    """None where the ledger does not say."""


@dataclass(frozen=True)
class Saving(Event):
    """A save begins."""

    step: int


@dataclass(frozen=True)
class Committed(Event):
    """A checkpoint is whole."""

    step: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Unsaved(Event):
    """A save failed."""

    step: int


@dataclass(frozen=True)
class Stop(Event):
    """All ranks agreed to end."""


@dataclass(frozen=True)
class Exit(Event):
    """Last words."""

    cause: str
    code: int


@dataclass(frozen=True)
class Seen(Event):
    """What a watcher wrote."""

    beat: Optional[Beat]

    def shifted(self, ns: int) -> Self:
        """See Event."""
        return replace(super().shifted(ns), beat=self.beat and replace(self.beat, t=self.beat.t + ns))


@dataclass(frozen=True)
class Hang(Seen):
    """A rank that was too long at one thing."""


@dataclass(frozen=True)
class Gone(Seen):
    """A rank's process is no more."""


def _whole(value: Any) -> int:
    if type(value) is not int:  # True is none
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is not a number")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("a number that is too large") from error
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _wholes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(entry) is not int for entry in value):
        raise ValueError(f"{value!r} are not whole numbers")
    return tuple(value)


def _wholes_by_name(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or any(type(entry) is not int for entry in value.values()):
        raise ValueError(f"{value!r} are not whole numbers by name")
    return value


def _beat(value: Any) -> Beat:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a beat")
    return Beat(_text(value.get("phase")), _whole(value.get("step")), _whole(value.get("t")))


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


READ: dict[Any, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    str: _text,
    tuple[int, ...]: _wholes,
    dict[str, int]: _wholes_by_name,
    Optional[tuple[int, ...]]: _or_none(_wholes),
    Optional[int]: _or_none(_whole),
    Optional[float]: _or_none(_number),
    Optional[Beat]: _or_none(_beat),
}
"""By a field's type, what makes it of what JSON has; raises ValueError."""
KINDS: dict[str, type[Event]] = {
    "start": Start,
    "resumed": Resumed,
    "tile": Tile,
    "skipped": Skipped,
    "rollback": Rollback,
    "saving": Saving,
    "committed": Committed,
    "unsaved": Unsaved,
    "stop": Stop,
    "exit": Exit,
    "hang": Hang,
    "gone": Gone,
}
FIELDS = {
    kind: [(field.name, READ[field.type]) for field in fields(kind)] for kind in (Event, StepsTile, *KINDS.values())
}
"""Of a kind of event, in order."""


def parse(line: bytes) -> Event:
    """The event of one line.

    Raises:
        ValueError: for a line that is torn, or none of ours.
    """
    try:
        written = json.loads(line)
    except RecursionError as error:
        raise ValueError("not an event") from error
    if not isinstance(written, dict):
        raise ValueError("not an event")
    kind = KINDS.get(str(written.get("ev")), Event)
    if kind is Tile and "first" in written:
        kind = StepsTile
    event = kind(*(read(written.get(name)) for name, read in FIELDS[kind]))
    if isinstance(event, StepsTile) and not 0 < event.first <= event.last < event.first + 1_000_000:
        raise ValueError(f"steps {event.first} to {event.last}")
    if isinstance(event, Start) and event.ranks < 1:
        raise ValueError(f"{event.ranks} ranks")
    return event
