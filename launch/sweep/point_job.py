"""One point of a sweep: the job that it is, and how far that has come. Its run folder bears the point's name, and so
does its run in wandb."""

import signal
from dataclasses import dataclass
from enum import Enum

from launch.jobs.points import Point
from launch.jobs.torchrun_job import TorchrunJob
from train.checkpoint.folder import committed, step_of
from train.data.atomic_json import read_json
from train.faults.stop import Cause

CUT_SHORT = (Cause.preempted.code, Cause.stopped.code, 128 + signal.SIGTERM)
"""Exit codes of a job that somebody told to end: it goes on."""
SLURM_JOB = "slurm_job"
"""In a point's record: the number that SLURM gave its job."""


class State(Enum):
    """How far a point has come."""

    new = "not run yet"
    done = "done"
    failed = "failed"
    refused = "refused"
    cut_off = "cut off"
    queued = "queued"


@dataclass(frozen=True, kw_only=True)
class PointJob(TorchrunJob):
    """The job of a point."""

    point: Point
    refusal: str | None
    """Why its combination cannot run; None if it can."""

    @property
    def state(self) -> State:
        """From what is in its folder. What SLURM has is queued until `settle` (queue.py) finds it gone."""
        if self.refusal is not None:
            return State.refused
        if self.done:
            return State.done
        record = read_json(self.record_file)
        if record is None:
            return State.new
        if (failure := self.failure) and failure.exit_code not in CUT_SHORT:
            return State.failed
        return State.queued if record.get(SLURM_JOB) and not failure else State.cut_off

    @property
    def slurm_job(self) -> str | None:
        """Number of its job; None if it was not submitted."""
        return (read_json(self.record_file) or {}).get(SLURM_JOB)

    @property
    def goes_on(self) -> str:
        """From where it does, if it was cut off."""
        saved = committed(self.folder / "checkpoints")
        return f"its checkpoint after step {step_of(saved[-1])}" if saved else "its beginning: nothing was saved"

    @property
    def why(self) -> str | None:
        """Why it has no numbers and will have none unasked, in a line."""
        if self.refusal is not None:
            return f"refused: {self.refusal}"
        if self.state is not State.failed or not (failure := self.failure):
            return None
        ours = [line for line in failure.last_lines if line.startswith("switchyard: ")]
        said = [*failure.last_lines[-1:], *ours[-1:]] or ["it printed nothing"]
        return f"exit code {failure.exit_code}: {said[-1].removeprefix('switchyard: ')}"
