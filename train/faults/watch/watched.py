"""The process that is watched: the one that started this one."""

import os
import select
import signal
import time
from contextlib import suppress

BETWEEN_LOOKS_S = 0.05
"""Where the kernel has no pidfd (before 5.3)."""


class Watched:
    """A parent that never has another's number: a descriptor stands for it, or that it is still our parent."""

    def __init__(self, pid: int) -> None:
        """`pid`: that of the parent, which may be gone already."""
        self._pid, self._descriptor = pid, -1
        with suppress(OSError, AttributeError):
            self._descriptor = os.pidfd_open(pid)
        # A number could have been given anew before it was opened, but not while the parent lived.
        self._gone = os.getppid() != pid

    def ended(self, within_s: float | None) -> bool:
        """Whether it is no more, or is so within that time (None: however long it takes): told at once."""
        if self._gone:
            return True
        if self._descriptor >= 0:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            self._gone = bool(poll.poll(None if within_s is None else within_s * 1000))
            return self._gone
        deadline = float("inf") if within_s is None else time.monotonic() + within_s
        while not self._gone and time.monotonic() < deadline:
            time.sleep(BETWEEN_LOOKS_S)
            self._gone = os.getppid() != self._pid
        return self._gone

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.ended(0.0):
            return
        with suppress(ProcessLookupError):
            if self._descriptor >= 0:
                signal.pidfd_send_signal(self._descriptor, number)
            else:
                os.kill(self._pid, number)


def state(pid: int) -> str:
    """Its letter in /proc: T is stopped by a signal, t by a debugger, D waits for a disk; "" if it is not there."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
