"""Jobs, one after another, as far as they are not done."""

from collections.abc import Callable, Sequence

from rich.progress import Progress, TaskID

from launch.bench.job import Job


def run_jobs(jobs: Sequence[Job], retry: bool, progress: Progress, task: TaskID, after: Callable[[], object]) -> None:
    """Run what has no numbers, and with `retry` what failed; `task` says where it is. `after` each, what there is can
    be written down."""
    for number, job in enumerate(jobs, start=1):
        if job.done or (job.failure and not retry):
            continue
        progress.update(task, description=f"{job.name} ({number} of {len(jobs)})")
        job.run(afresh=True)
        after()
