"""The newest start of a job fences older ones, which a node thought dead, or another `sbatch`, may still run."""

import time
from contextlib import suppress
from pathlib import Path

from train.ledger.events import attempts

BETWEEN_LOOKS_S = 1.0


class Fence:
    """Of one attempt. Threads may share it."""

    def __init__(self, run_folder: Path, attempt: int) -> None:
        self._run_folder, self._attempt = run_folder, attempt
        self._ours, self._looked = True, time.monotonic()

    def still_ours(self, at_once: bool = False) -> bool:
        """Whether the run's folder is this attempt's to write to: as of a second ago, or `at_once`."""
        now = time.monotonic()
        if self._ours and (at_once or now - self._looked > BETWEEN_LOOKS_S):
            self._looked = now
            with suppress(OSError):  # a file system that does not answer now has no newer start to tell of
                self._ours = max(attempts(self._run_folder), default=0) <= self._attempt
        return self._ours
