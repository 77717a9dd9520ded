"""A ledger's lines as they are read back: one dataclass an event, with the fields that events.py promises."""

import json
import math
from dataclasses import dataclass, fields, replace
from types import GenericAlias, UnionType
from typing import Any, Optional, Self, get_args


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
class Exit(Event):
    """Last words."""

    cause: str


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


KINDS: dict[str, type[Event]] = {
    "start": Start,
    "resumed": Resumed,
    "tile": Tile,
    "skipped": Skipped,
    "rollback": Rollback,
    "saving": Saving,
    "committed": Committed,
    "unsaved": Unsaved,
    "exit": Exit,
    "hang": Hang,
    "gone": Gone,
}


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
    event = _read(written, kind)
    if isinstance(event, StepsTile) and not 0 < event.first <= event.last < event.first + 1_000_000:
        raise ValueError(f"steps {event.first} to {event.last}")
    if isinstance(event, Start) and event.ranks < 1:
        raise ValueError(f"{event.ranks} ranks")
    return event


def _read(value: Any, kind: Any) -> Any:
    """`value`, as JSON gave it, as a `kind`. Raises ValueError."""
    if isinstance(kind, type) and kind in (Beat, *KINDS.values(), StepsTile, Event) and isinstance(value, dict):
        return kind(**{field.name: _read(value.get(field.name), field.type) for field in fields(kind)})
    of = get_args(kind)
    if isinstance(kind, UnionType) or type(None) in of:
        return None if value is None else _read(value, of[0])
    if isinstance(kind, GenericAlias) and isinstance(value, list):
        return tuple(_read(entry, of[0]) for entry in value)
    if isinstance(kind, GenericAlias) and isinstance(value, dict):
        return {_read(name, of[0]): _read(entry, of[1]) for name, entry in value.items()}
    if kind is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not finite")
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    raise ValueError(f"{value!r} is not of {kind}")
