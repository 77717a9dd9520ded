"""Points as jobs of SLURM: into its queue, and whether they are still in it."""

import subprocess
import sys
from dataclasses import replace

from launch.submit import Order, queue
from launch.sweep.point_job import SLURM_JOB, PointJob, State
from models.config import ConfigError

TORCHRUN_FAILED = 1
"""What torchrun exits with, whatever its ranks did."""
GOING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING")
"""States of a job that has not ended."""


def order_of(job: PointJob, order: Order) -> Order:
    """What submits `job`, where `order` says on which nodes."""
    log = str(job.log).replace("%", "%%")
    flags = [f"--job-name={job.name}", f"--output={log}", *order.sbatch_flags]
    return replace(order, sbatch_flags=flags, job_words=[*job.words, f"run.dir={job.folder}"])


def submit_point(job: PointJob, order: Order) -> str:
    """Queue it. Returns its number.

    Raises:
        ConfigError: if SLURM does not take it; what it said is on standard error.
    """
    job.runs.mkdir(parents=True, exist_ok=True)
    called = queue(order_of(job, order), ["--parsable"], subprocess.PIPE)
    number = (called.stdout or "").strip().partition(";")[0]
    if called.returncode or not number:
        raise ConfigError(f"{job.name}: sbatch refused it with exit code {called.returncode}: change what it names")
    job.write_record(**{SLURM_JOB: number})
    return number


def settle(job: PointJob) -> None:
    """Where SLURM's job of a queued point has ended and left no summary, write down that it failed."""
    if job.state is not State.queued or job.slurm_job is None:
        return
    try:
        asked = ["scontrol", "show", "job", job.slurm_job]
        described = subprocess.run(asked, capture_output=True, text=True).stdout
    except FileNotFoundError:
        print(f"switchyard: {job.name}: no scontrol here to ask about job {job.slurm_job}", file=sys.stderr)
        return
    # After some minutes SLURM forgets a job that ended, and then says nothing.
    fields = dict(field.split("=", 1) for field in described.split() if "=" in field)
    if fields.get("JobState") in GOING or job.done:
        return
    exit_code = int(fields.get("ExitCode", "0").partition(":")[0]) or TORCHRUN_FAILED
    job.write_record(**{SLURM_JOB: job.slurm_job}, exit_code=exit_code, last_lines=job.last_lines())
