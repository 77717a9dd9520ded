"""One process at a time, across the processes of a machine."""

import fcntl
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_S = 0.05
PATIENCE_S = 10.0
"""How long a wait goes on before it is spoken of."""


class FileLock:
    """flock(2) on a file, which stays. The kernel lets go when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        """Make the file. Raises OSError if that is not allowed."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.held = False

    def try_acquire(self) -> bool:
        """Take it if it is free. Returns whether this object holds it."""
        if not self.held:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.held = True
        return True

    def acquire(self, awaited: str) -> None:
        """Wait for it; after PATIENCE_S say once on standard error that `awaited` is waited for."""
        patience = Patience(awaited)
        while not self.try_acquire():
            patience.wait()

    def release(self) -> None:
        """Let another have it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self.held = False

    def close(self) -> None:
        """Release it and close the file. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self.held = -1, False

    def __enter__(self) -> Self:
        """Itself; leaving closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class Patience:
    """A wait by polling, of which the user hears once if it is long."""

    def __init__(self, awaited: str) -> None:
        """Wait for `awaited`, from now on."""
        self._awaited = awaited
        self._speak_at: float | None = time.monotonic() + PATIENCE_S

    def wait(self) -> None:
        """A short sleep, until what is waited for is to be looked at again."""
        time.sleep(POLL_S)
        if self._speak_at is not None and time.monotonic() > self._speak_at:
            print(f"switchyard: waiting for {self._awaited}", file=sys.stderr, flush=True)
            self._speak_at = None
