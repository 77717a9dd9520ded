"""The stacks of a rank that hangs: what every thread of it is in."""

import os
import signal
import time
from pathlib import Path

from train.faults.watch.watched import Watched, state

PATIENCE_S = 3.0
SETTLED_S = 0.2
"""No more was written for that long: it is whole."""
SILENT = {"T": "is stopped by a signal", "t": "is stopped by a debugger", "D": "waits for a disk"}


def stacks_path(attempt_folder: Path, rank: int) -> Path:
    """Where they are; faulthandler writes there, in the rank."""
    return attempt_folder / f"stacks-{rank:05d}.txt"


def leave_stacks(path: Path, watched: Watched, pid: int) -> None:
    """Have the rank write its stacks to `path`, and return when it has; or write there why it could not."""
    before = size = path.stat().st_size
    if (letter := state(pid)) not in ("T", "t"):  # it would find the signal when it goes on, which it will not
        watched.signal(signal.SIGUSR1)
        deadline, changed = time.monotonic() + PATIENCE_S, time.monotonic()
        while time.monotonic() < deadline and not watched.ended(0.05):
            if (now := path.stat().st_size) != size:
                size, changed = now, time.monotonic()
            elif size > before and time.monotonic() - changed > SETTLED_S:
                return
        letter = state(pid)
    if size == before:
        why = SILENT.get(letter, "does not answer")
        with path.open("a") as file:
            file.write(f"no stacks: the process {why} (state {letter or 'gone'})\n")
            file.flush()
            os.fsync(file.fileno())
