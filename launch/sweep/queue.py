"""Points as jobs of SLURM: into its queue, and whether they are still in it."""

import subprocess
import sys
from dataclasses import replace

from launch.submit import Order, queue
from launch.sweep.point_job import SLURM_JOB, PointJob, State
from models.config import ConfigError

TORCHRUN_FAILED = 1
"""What torchrun exits with, whatever its ranks did."""
FORGOTTEN = "Invalid job id"
"""What SLURM says of a job some minutes after its end."""
CUT_OFF = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "DEADLINE")
"""States of a job that was ended from outside: it goes on."""
ENDED = ("COMPLETED", "FAILED", "OUT_OF_MEMORY", "BOOT_FAIL", *CUT_OFF)
"""States of a job that has ended; one that is not known here has not."""


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
    """Where SLURM's job of a queued point has ended and left no summary, write down that it failed, or was cut off. It
    stays queued where SLURM does not answer."""
    if job.state is not State.queued or job.slurm_job is None:
        return
    try:
        asked = ["scontrol", "show", "job", job.slurm_job]
        answer = subprocess.run(asked, capture_output=True, text=True)
    except FileNotFoundError:
        print(f"switchyard: {job.name}: no scontrol here to ask about job {job.slurm_job}", file=sys.stderr)
        return
    forgotten = answer.returncode and FORGOTTEN in answer.stderr
    if answer.returncode and not forgotten:
        why = " ".join(answer.stderr.split()) or f"scontrol's exit code is {answer.returncode}"
        print(f"switchyard: {job.name}: no word of job {job.slurm_job}, which stays queued: {why}", file=sys.stderr)
        return
    fields = dict(field.split("=", 1) for field in answer.stdout.split() if "=" in field)
    state = fields.get("JobState")
    if job.done or not (forgotten or state in ENDED):
        return
    if state in CUT_OFF:
        job.write_record()
        return
    exit_code = int(fields.get("ExitCode", "0").partition(":")[0]) or TORCHRUN_FAILED
    job.write_record(**{SLURM_JOB: job.slurm_job}, exit_code=exit_code, last_lines=job.last_lines())
