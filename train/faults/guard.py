"""What stands beside one rank of an attempt: its beat, its watcher, its ear for SIGTERM, its part in stops."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from parallel.clock.phase_clock import Clock
from parallel.world import Launch
from train.faults.beat import Beat
from train.faults.fence import Fence
from train.faults.recovery_config import RecoveryConfig
from train.faults.sigterm import Sigterm
from train.faults.stop import Cause, StopAgreement
from train.faults.watch.start import start_watcher
from train.ledger.attempt import OpenAttempt
from train.ledger.ledger import Ledger


@dataclass(frozen=True)
class Guard:
    """Of one rank."""

    ledger: Ledger
    beat: Beat
    stop: StopAgreement
    fence: Fence
    watcher: subprocess.Popen
    """Ends after a rank that torchrun started, which does not wait for it; with the block of one that stands alone."""

    def agreed(self, total: Tensor) -> Cause | None:
        """What all ranks stop for after this step, whose sum of what they ask is `total`; it is in the ledger then."""
        if cause := self.stop.agreed(total):
            self.ledger.write("stop", cause=cause.value)
        return cause


@contextmanager
def guarded(
    run_folder: Path, attempt: OpenAttempt, launch: Launch, clock: Clock, recovery: RecoveryConfig
) -> Iterator[Guard]:
    """Have this rank watched, and heard. Raises OSError where a file cannot be made."""
    beat = Beat(attempt.folder, launch.rank)
    clock.listeners.append(beat.entered)
    first_here = launch.rank - launch.local_rank
    ranks_here = range(first_here, first_here + launch.local_world_size)
    watcher = start_watcher(attempt.folder, launch.rank, ranks_here, recovery)
    fence = Fence(run_folder, attempt.number)
    stop = StopAgreement(run_folder, launch.rank, launch.world_size, fence)

    def told() -> None:
        stop.preempted = True

    def last_words(cause: str, code: int) -> None:
        attempt.ledger.write("exit", sync=True, cause=cause, code=code)

    try:
        with Sigterm(attempt.folder, recovery.stop_grace_s, told, last_words):
            yield Guard(attempt.ledger, beat, stop, fence, watcher)
    finally:
        if not launch.launched:  # this process may be more than a rank, as a notebook is, and go on
            watcher.kill()  # it heeds no other signal
            watcher.wait()
