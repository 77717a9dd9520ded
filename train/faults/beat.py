"""What a rank is at, for those who watch it: a file of 32 bytes, written in place at every phase. Imports no torch."""

import os
import struct
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from train.ledger.events import now_ns

PHASES = (
    *("init_model", "ckpt_load"),
    *("data_wait", "compute_fwd", "compute_bwd", "compute_opt", "log"),
    *("eval", "ckpt_save", "profile"),
    "shutdown",
)
"""The start's, the clock's (parallel/clock/phase_clock.py), and the end's."""
RECORD = struct.Struct("<qqqII")
"""t, step, steps begun in this attempt, index of the phase, process."""


@dataclass(frozen=True)
class LastBeat:
    """What is read of it."""

    phase: str
    step: int
    """The one that is trained, or after which something else is done; 0 before the first."""
    t: int
    """When the phase began, ns of CLOCK_BOOTTIME."""
    steps_begun: int
    """In this attempt."""
    pid: int

    def event(self) -> dict[str, Any]:
        """As the ledger has it."""
        return {key: value for key, value in asdict(self).items() if key in ("phase", "step", "t")}


class Beat:
    """Of one rank. One pwrite(2) a phase: 1.1 µs (2 CPU cores, ext4), which the host takes."""

    def __init__(self, attempt_folder: Path, rank: int) -> None:
        """Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(beat_path(attempt_folder, rank), flags, 0o644)
        self._pid, self._steps_begun, self._step = os.getpid(), 0, 0
        self.at("init_model")

    def at(self, phase: str, step: int | None = None) -> None:
        """`phase`, one of PHASES, begins; `step`: where a job goes on from, None: where it was."""
        if step is not None:
            self._step = step
        record = RECORD.pack(now_ns(), self._step, self._steps_begun, PHASES.index(phase), self._pid)
        with suppress(OSError):  # what watches a job does not end it
            os.pwrite(self._descriptor, record, 0)

    def entered(self, phase: Enum) -> None:
        """A clock's phase begins (Clock.listeners): the first of a step is data_wait."""
        if phase.value == "data_wait":
            self._step += 1
            self._steps_begun += 1
        self.at(phase.value)


def beat_path(attempt_folder: Path, rank: int) -> Path:
    """Where it is."""
    return attempt_folder / f"beat-{rank:05d}"


def read_beat(attempt_folder: Path, rank: int) -> LastBeat | None:
    """The last one; None if there was none."""
    try:
        record = beat_path(attempt_folder, rank).read_bytes()
    except OSError:
        return None
    if len(record) != RECORD.size:
        return None
    t, step, steps_begun, phase, pid = RECORD.unpack(record)
    return LastBeat(PHASES[phase], step, t, steps_begun, pid)
