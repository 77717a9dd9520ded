"""Start the watcher of this rank."""

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

from train.faults.recovery_config import RecoveryConfig
from train.faults.watch.limits import Limits
from train.faults.watch.stacks import stacks_path

ROOT = Path(__file__).resolve().parents[3]


def start_watcher(attempt_folder: Path, rank: int, ranks_here: range, recovery: RecoveryConfig) -> subprocess.Popen:
    """Have this process watched as `rank` of an attempt, whose folder is there and has its beat.

    The watcher has a session of its own, so that no signal to the rank's group takes it along; of the rank's it has
    standard error. The caller keeps what is returned, and need not wait for it: it ends after this process.

    Args:
        attempt_folder: of this attempt.
        rank: this process.
        ranks_here: all of this host.
        recovery: its limits.

    Raises:
        OSError: if a file cannot be made, or no process.
    """
    limits = Limits(
        start=recovery.start_limit_s,
        load=recovery.load_limit_s,
        first_step=recovery.first_step_limit_s,
        step=recovery.step_limit_s,
        eval=recovery.eval_limit_s,
        save=recovery.save_limit_s,
    )
    # The handler is C code that takes no lock: it answers while the main thread waits inside a collective.
    faulthandler.register(signal.SIGUSR1, file=stacks_path(attempt_folder, rank).open("a"), all_threads=True)
    here = f"{ranks_here.start}:{ranks_here.stop}"
    words = [str(os.getpid()), str(rank), here, limits.word(), str(attempt_folder)]
    return subprocess.Popen(
        [sys.executable, "-S", "-P", "-m", "train.faults.watch", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
