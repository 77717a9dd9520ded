"""A file of lines that is appended to, whatever its disk does meanwhile."""

import errno
import os
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import Lock

KEPT = 10_000
"""Lines in memory at most, while they cannot be written; then the oldest are lost."""


class LineFile:
    """A line is one write(2) to an O_APPEND descriptor: once `append` returns the kernel has it, and SIGKILL loses
    nothing. What a full disk or a host's death tears costs that one line: the next begins on a fresh one.

    Where the disk takes nothing, lines wait in memory for the next call, and standard error is told once. Threads may
    share it.
    """

    def __init__(self, path: Path) -> None:
        """Append to `path`, whose folder is there. Raises OSError."""
        self._path, self._lock = path, Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        self._waiting = deque[bytes]()
        self._lost, self._told = 0, False

    def append(self, line: bytes, *, sync: bool = False, required: bool = False) -> None:
        """Add `line`, which has no end of its own, after those that wait. `sync`: return when the disk has it.

        Raises:
            OSError: if the file is closed; or, `required`, if this line cannot be written now.
        """
        with self._lock:
            if self._descriptor < 0:
                raise OSError(errno.EBADF, "closed", str(self._path))
            self._waiting.append(line)
            try:
                self._write()
                if sync:
                    os.fsync(self._descriptor)
            except OSError as error:
                if required:
                    raise
                self._keep(error)

    def close(self) -> None:
        """Close the file; a second call does nothing. What still waits is tried once more, and then lost."""
        with self._lock:
            if self._descriptor < 0:
                return
            try:
                self._write()
            except OSError:
                self._lost += len(self._waiting)
            os.close(self._descriptor)
            self._descriptor = -1
        if self._lost:
            _tell(f"{self._path}: {self._lost:,} lines could not be written, and are lost")

    def _write(self) -> None:
        while self._waiting:
            line = b"\n" * self._torn + self._waiting[0] + b"\n"
            written = os.write(self._descriptor, line)
            self._torn = written != len(line)
            if written < len(line) - 1:  # without its end alone it is whole
                raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes of a line were written")
            self._waiting.popleft()

    def _keep(self, error: OSError) -> None:
        while len(self._waiting) > KEPT:
            self._waiting.popleft()
            self._lost += 1
        if not self._told:
            self._told = True
            _tell(f"{self._path} cannot be written to ({error.strerror}): its lines wait in memory until it can")


def _tell(text: str) -> None:
    with suppress(OSError):  # standard error may be a file of the same disk
        print(f"switchyard: {text}", file=sys.stderr, flush=True)
