"""Stops that all ranks make together: asked for by SIGTERM or a file STOP in the run's folder, or by a newer attempt.

step 7    each rank puts what it was told into the collective that a step ends with anyway (train/step.py)
step 8    is issued; then the sum of step 7 is read, which no device is held up for, and is the same on every rank
          all stop after step 8: they save, write `stop` and their last words, and exit with the cause's code
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from torch import Tensor

from parallel.comm import Communicator
from train.failure import FAILED, JobEnds
from train.faults.fence import Fence
from train.late_number import LateNumber

STOP_FILE = "STOP"
BETWEEN_LOOKS_S = 0.2
"""At the file; at the attempts, five times that."""


class Cause(Enum):
    """Why."""

    preempted = "preempted"
    """SIGTERM: the machine is wanted for something else, and the job may be started again."""
    stopped = "stopped"
    """The file STOP."""
    fenced = "fenced"
    """A newer attempt at the same job has the folder now."""

    @property
    def code(self) -> int:
        """A rank's exit code."""
        return {"preempted": 75, "stopped": 76, "fenced": 77}[self.value]

    @property
    def saves(self) -> bool:
        """Whether the folder is still this attempt's to write to."""
        return self is not Cause.fenced


UNIT = {Cause.preempted: 1, Cause.stopped: 1 << 20, Cause.fenced: 1 << 21}
"""What a rank puts into the sum. All ranks may be told of the first, rank 0 alone looks for the others."""
LEFT_OUT = 1 << 22
"""The same of a rank that left out the last step it knows of. The sum of a million ranks is exact in float64."""


class Stopped(JobEnds):
    """The job stopped in order."""

    def __init__(
        self, cause: Cause, step: int, saved: bool, why_not: str = "checkpoint.every and checkpoint.at_end are off"
    ) -> None:
        """After `step`, which was `saved` or not."""
        kept = "saved" if saved else f"not saved ({why_not})"
        line = {
            Cause.preempted: f"told to end (SIGTERM): ended after step {step}, {kept}; the same words go on",
            Cause.stopped: f"{STOP_FILE} was asked for: ended after step {step}, {kept}; remove it, and the same words "
            "go on",
            Cause.fenced: f"ended after step {step}, not saved: a newer start of this job has its folder",
        }[cause]
        super().__init__(cause.value, cause.code, line)


@contextmanager
def all_together(comm: Communicator) -> Iterator[None]:
    """Where all ranks end the job, none leaves before all are done: torchrun ends those that are left when the first is
    gone, and rank 0 may still have something to write."""
    try:
        yield
    except JobEnds:
        with suppress(RuntimeError):  # a rank that is gone has nothing left to write
            comm.barrier()
        raise


@dataclass
class StopAgreement:
    """Of one rank."""

    run_folder: Path
    rank: int
    ranks: int
    """How many there are."""
    fence: Fence
    preempted: bool = False
    """Whether this process was told to end; the handler of SIGTERM sets it."""
    _file_seen: bool = field(default=False, init=False)
    _looked: float = field(default=float("-inf"), init=False)
    _pending: LateNumber | None = field(default=None, init=False)

    def own(self, left_out: bool) -> int:
        """What this rank puts into the step's sum; `left_out`: whether it left out the last step it knows of."""
        asked = UNIT[Cause.preempted] * self.preempted + LEFT_OUT * left_out
        if self.rank == 0:
            asked += UNIT[Cause.stopped] * self._file_is_there()
            asked += UNIT[Cause.fenced] * (not self.fence.still_ours())
        return asked

    def agreed(self, total: Tensor) -> Cause | None:
        """What all ranks agreed on in the step before, once this one is issued, whose sum is `total`.

        Raises:
            JobEnds: on every rank, if some of them alone left out a step.
        """
        before, self._pending = self._pending, LateNumber(total)
        left_out, asked = divmod(int(before.read()) if before else 0, LEFT_OUT)
        if 0 < left_out < self.ranks:
            raise JobEnds(
                "failed",
                FAILED,
                f"{left_out} of {self.ranks} ranks alone left out a step as not finite: replicas differ, memory or "
                "arithmetic went wrong; recovery.check_replicas_every=1 says where, from the checkpoint before",
            )
        for cause in (Cause.fenced, Cause.stopped):
            if asked >= UNIT[cause]:
                return cause
        return Cause.preempted if asked else None

    def _file_is_there(self) -> bool:
        if not self._file_seen and time.monotonic() - self._looked > BETWEEN_LOOKS_S:
            self._looked = time.monotonic()
            self._file_seen = os.path.exists(self.run_folder / STOP_FILE)  # Path's raises where it cannot look
        return self._file_seen
