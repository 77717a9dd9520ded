"""Makes faults happen to one rank: what a configuration says, where and when it says.

    RUN/faults/attempt-0001-rank-00003.jsonl    {"what": "slow", "place": "data", "step": 7, "begin": …, "end": …}

What happened is written there, in nanoseconds of CLOCK_BOOTTIME as in the ledger: books that are kept of the run can be
compared with it. A fault that may end the process is written before it happens, and has no `end`.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock

from parallel.clock.phase_clock import Clock, Phase
from train.faults.config import STEPLESS, Fault, FaultConfig, Place
from train.ledger.events import now_ns
from train.metrics.jsonl import JsonlLog

FOLDER = "faults"
"""In the run's folder."""
PLACES = {
    Phase.data_wait: Place.data,
    Phase.compute_fwd: Place.forward,
    Phase.compute_bwd: Place.backward,
    Phase.compute_opt: Place.optimizer,
    Phase.ckpt_save: Place.save,
}
"""Those that the clock tells of; for the others `reach` is called."""
SIGNALS = {Fault.sigkill: signal.SIGKILL, Fault.sigterm: signal.SIGTERM, Fault.sigstop: signal.SIGSTOP}


class InjectedFault(RuntimeError):
    """A crash that was asked for."""


class Injector:
    """The faults of one rank in one attempt, each of which happens once. Threads may share it."""

    def __init__(self, faults: Iterable[FaultConfig], rank: int, attempt: int, run_folder: Path) -> None:
        """`faults` of all ranks and attempts."""
        self.step = 0
        """The step that the loop is in; the loop sets it."""
        self._rank = rank
        self._left = [fault for fault in faults if fault.rank == rank and fault.attempt in (0, attempt)]
        self._lock = Lock()
        self._path = run_folder / FOLDER / f"attempt-{attempt:04d}-rank-{rank:05d}.jsonl"

    def listen(self, clock: Clock) -> None:
        """Take `clock`'s phases for places. Without faults there is nothing to listen for."""
        if self._left:
            clock.listeners.append(self._enter)

    def reach(self, place: Place, step: int = 0) -> None:
        """Let happen what is to happen at `place`, in or after `step`.

        Raises:
            InjectedFault: a crash.
            OSError: a write that fails, with the words of a full disk.
        """
        for fault in self._take(lambda fault: fault.at is place and (fault.step == step or place in STEPLESS)):
            self._happen(fault, place, step)

    def loss_factor(self) -> float:
        """What this step's loss is divided by: NaN where it is to be spoilt, else 1. Of several faults of one step the
        next ones are left for when the step is done again."""
        if not self._take(lambda fault: fault.what is Fault.non_finite and fault.step == self.step, at_most=1):
            return 1
        self._stamp(Fault.non_finite, Place.forward, self.step, now_ns())
        return float("nan")

    def committed(self, checkpoint: Path, step: int) -> None:
        """Flip a bit of what this rank wrote into `checkpoint`, of `step`, if that is to happen: once it has its name.

        Raises:
            FileNotFoundError: if this rank has no file in it.
        """
        for fault in self._take(lambda fault: fault.what is Fault.corrupt and fault.step == step):
            begin = now_ns()
            _flip_bit(_largest_file(checkpoint, self._rank))
            self._stamp(fault.what, None, step, begin, now_ns())

    @property
    def left(self) -> str:
        """What has not happened on this rank, for the user; nothing if all has."""
        return ", ".join(_words(fault) for fault in self._left)

    def _enter(self, phase: Phase) -> None:
        if phase in PLACES:
            self.reach(PLACES[phase], self.step)

    def _take(self, due: Callable[[FaultConfig], bool], at_most: int | None = None) -> list[FaultConfig]:
        """The faults that are due; they are no longer left."""
        if not self._left:
            return []
        with self._lock:
            places = [i for i, fault in enumerate(self._left) if due(fault)][:at_most]
            taken = [self._left[i] for i in places]
            self._left = [fault for i, fault in enumerate(self._left) if i not in places]
        return taken

    def _happen(self, fault: FaultConfig, place: Place, step: int) -> None:
        begin = now_ns()
        if fault.what is Fault.slow:
            time.sleep(fault.seconds)
            self._stamp(fault.what, place, step, begin, now_ns())
            return
        self._stamp(fault.what, place, step, begin)
        if fault.what is Fault.crash:
            raise InjectedFault(f"faults.inject: rank {self._rank} crashes at {place.value}, step {step}")
        if fault.what is Fault.fail:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (faults.inject)")
        os.kill(os.getpid(), SIGNALS[fault.what])

    def _stamp(self, what: Fault, place: Place | None, step: int, begin: int, end: int | None = None) -> None:
        log = JsonlLog(self._path)
        row: dict[str, float | int | str] = {"what": what.value, "step": step, "begin": begin}
        log.append(row | ({"place": place.value} if place else {}) | ({"end": end} if end is not None else {}))
        log.close()


def _words(fault: FaultConfig) -> str:
    place = f" at {fault.at.value}" if fault.at else ""
    return f"{fault.what.value}{place}" + (f" of step {fault.step}" if fault.step else "")


def _largest_file(checkpoint: Path, rank: int) -> Path:
    """Of those that `rank` wrote, as torch.distributed.checkpoint names them."""
    files = sorted(checkpoint.glob(f"__{rank}_*"), key=lambda path: path.stat().st_size)
    if not files:
        raise FileNotFoundError(f"faults.inject: rank {rank} has no file in {checkpoint} to corrupt")
    return files[-1]


def _flip_bit(path: Path) -> None:
    """In the middle, where the tensors are."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
