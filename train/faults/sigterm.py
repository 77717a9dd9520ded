"""SIGTERM, heard by a thread: a main thread that waits in a collective for a peer that is dead would never hear it.

torchrun sends SIGTERM to all its ranks for two reasons. The job is to end (and then there is time to stop in order); or
one rank is dead, and then the others wait for it in vain, and end at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from train.faults.watch.stamps import a_rank_is_lost
from train.ledger.events import KILLED

FIRST_S, LATER_S = 0.1, 1.0
"""Between looks for a rank that is lost: in the first second, when its watcher may yet have to stamp it, and later."""


class Sigterm:
    """A context manager of the main thread, in which SIGTERM does not kill but is heard; after it, it kills again."""

    def __init__(
        self, attempt_folder: Path, grace_s: float, tell: Callable[[], None], last_words: Callable[[str, int], None]
    ) -> None:
        """
        Args:
            attempt_folder: where watchers stamp the end of ranks.
            grace_s: how long the process has to end by itself, once SIGTERM came.
            tell: called when it came, from a thread.
            last_words: called with a cause and an exit code where it did not end, just before this ends it.
        """
        self._folder, self._grace_s, self._tell, self._last_words = attempt_folder, grace_s, tell, last_words

    def __enter__(self) -> Self:
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # The handler is for the wakeup alone: C code writes the signal's number, whatever the main thread is in.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), name="sigterm", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self._write)  # the thread ends, unless it has been told: then the process has its time to end

    def _listen(self, read: int) -> None:
        while numbers := os.read(read, 64):
            if signal.SIGTERM in numbers:
                break
        if not numbers:
            os.close(read)
            return
        # Of one that was told it stays open: what a second signal writes would raise, in the middle of the first's end.
        self._tell()
        began = time.monotonic()
        while (waited_s := time.monotonic() - began) < self._grace_s:
            if a_rank_is_lost(self._folder):
                self._end("lost_peers")
            time.sleep(FIRST_S if waited_s < 1 else LATER_S)
        self._end("preempted")

    def _end(self, cause: str) -> None:
        with suppress(OSError):
            self._last_words(cause, KILLED)
        os._exit(KILLED)
