"""A run's ledger, read back: its events by attempt and rank, whatever state their writers left the files in."""

import re
from dataclasses import dataclass
from pathlib import Path

from models.config import ConfigError
from train.ledger.events import LEDGER, attempt_folder, attempts
from train.ledger.records import Event, parse


@dataclass(frozen=True)
class RankEvents:
    """Of one rank in one attempt, in the order written."""

    own: tuple[Event, ...] = ()
    """By itself."""
    watched: tuple[Event, ...] = ()
    """By the watcher beside it."""


@dataclass(frozen=True)
class AttemptEvents:
    """Of one start of a job."""

    number: int
    ranks: dict[int, RankEvents]


@dataclass(frozen=True)
class RunEvents:
    """Of a whole run."""

    attempts: tuple[AttemptEvents, ...]
    """In order."""
    dropped_lines: int
    """That were torn, or none of ours."""


def read_ledger(run_folder: Path) -> RunEvents:
    """All that a run's ledger holds now. Others may be writing to it.

    Raises:
        ConfigError: if it has none, or it cannot be read.
    """
    try:
        numbers = attempts(run_folder)
        if not numbers:
            said = "" if run_folder.is_dir() else "; there is no such folder"
            raise ConfigError(f"{run_folder} has no {LEDGER}/ of a start: name the folder of a run that began{said}")
        read = [_read_attempt(attempt_folder(run_folder, number), number) for number in numbers]
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read ({error.strerror}): make it readable") from error
    return RunEvents(tuple(attempt for attempt, _ in read), sum(dropped for _, dropped in read))


def _read_attempt(folder: Path, number: int) -> tuple[AttemptEvents, int]:
    files: dict[tuple[str, int], tuple[Event, ...]] = {}
    dropped = 0
    for path in sorted(folder.iterdir()):
        if match := re.fullmatch(r"(rank|watch)-(\d+)\.jsonl", path.name):
            events, torn = _events(path.read_bytes())
            files[match[1], int(match[2])] = events
            dropped += torn
    ranks = sorted({rank for _, rank in files})
    of_rank = {rank: RankEvents(files.get(("rank", rank), ()), files.get(("watch", rank), ())) for rank in ranks}
    return AttemptEvents(number, of_rank), dropped


def _events(content: bytes) -> tuple[tuple[Event, ...], int]:
    events, dropped = [], 0
    for line in content.split(b"\n"):
        if line.strip():
            try:
                events.append(parse(line))
            except ValueError:  # a proper beginning of an object never parses, so nothing torn gets through
                dropped += 1
    return tuple(events), dropped
