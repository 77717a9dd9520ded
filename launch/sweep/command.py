"""`switchyard sweep sweep.dir=FOLDER strategy=fsdp,ep overlap=none,max …`: a job for each combination, here one after
another or through SLURM. A folder that is not done goes on with the same words."""

import shlex
import sys
from collections.abc import Sequence

from rich.progress import Progress, TextColumn

from launch.clean_end import ended_cleanly
from launch.jobs.own_folder import own_folder
from launch.report.command import REPORT_FILE, write_report
from launch.sweep.order import SweepOrder
from launch.sweep.point_job import PointJob, State
from launch.sweep.queue import order_of, settle, submit_point
from launch.sweep.results import CSV_FILE, Result, parquet_missing, result_of, write_results
from launch.sweep.table import print_sweep
from launch.table_console import table_console
from models.config import ConfigError
from train.faults.stop import STOP_FILE


def sweep(words: Sequence[str]) -> int:
    """Run, or queue, what is not done yet; write the results and their page, and print a table.

    Returns:
        0 if no point failed, 1 if one did, or was cut off or not run on this machine. A refused one has not failed: it
        is a result.

    Raises:
        ConfigError: before anything is started, for a word that no job takes, and for a folder that holds a job of the
            same name and other words, or that another sweep writes to.
    """
    order = SweepOrder.parse(words)
    if order.yaml is not None:
        print(order.yaml, end="")
        return 0
    if order.submission and order.submission.dry_run:
        for job in order.jobs:
            print(f"# {job.why}" if job.refusal else order_of(job, order.submission).as_typed())
        return 0
    command = shlex.join(["switchyard", "sweep", *words])
    for job in order.jobs:
        if job.refusal is None:
            job.check("sweep.dir")
    with ended_cleanly(), own_folder(order.folder, "sweep.dir", "sweep"):
        for job in order.jobs:
            settle(job)
        states = {job.name: job.state for job in order.jobs}
        to_run = [job for job in order.jobs if _is_to_run(job, states[job.name], order.retry)]
        try:
            if order.submission:
                for job in to_run:
                    if states[job.name] is State.failed:
                        job.clear()
                    _say(job, f"job {submit_point(job, order.submission)} of SLURM")
            else:
                _run(order, to_run, states, command)
        except KeyboardInterrupt:
            print("switchyard: the same words go on from here", file=sys.stderr)
            raise
        finally:
            results = _write(order, command)
        print_sweep(results, table_console())
        _print_counts(order)
        if any(job.done for job in order.jobs):
            try:
                print(write_report([order.folder], order.folder / REPORT_FILE))
            except ConfigError as error:
                print(f"switchyard: no {REPORT_FILE}: {error}", file=sys.stderr)
        print(order.folder / CSV_FILE)
    if note := parquet_missing():
        print(f"switchyard: {note}", file=sys.stderr)
    bad = (State.failed,) if order.submission else (State.failed, State.cut_off, State.new)
    return 1 if any(job.state in bad for job in order.jobs) else 0


def _is_to_run(job: PointJob, state: State, retry: bool) -> bool:
    if state is State.cut_off and (job.folder / STOP_FILE).exists():
        # Its job would be refused, and be on record as failed.
        _say(job, f"{job.folder / STOP_FILE} asks it to stop: remove it, and the same words go on")
        return False
    return state in (State.new, State.cut_off) or (state is State.failed and retry)


def _run(order: SweepOrder, to_run: Sequence[PointJob], states: dict[str, State], command: str) -> None:
    """One after another on this machine."""
    console = table_console()
    with Progress(TextColumn("{task.description}"), console=console, transient=True) as progress:
        task = progress.add_task("")
        for number, job in enumerate(to_run, start=1):
            if states[job.name] is State.cut_off:
                _say(job, f"was cut off, and goes on from {job.goes_on}")
            progress.update(task, description=f"{job.name} ({number} of {len(to_run)})")
            job.run(afresh=states[job.name] is not State.cut_off)
            _say(job, f"{job.summary().tokens_per_sec:,.0f} tokens/s" if job.done else job.why or job.state.value)
            _write(order, command)


def _write(order: SweepOrder, command: str) -> list[Result]:
    results = [result_of(job, order.swept) for job in order.jobs]
    write_results(order.folder, results, command)
    return results


def _say(job: PointJob, text: str) -> None:
    print(f"{job.name}: {text}", flush=True)


def _print_counts(order: SweepOrder) -> None:
    states = [job.state for job in order.jobs]
    counted = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
    unasked = "; retry=true runs what failed again" if State.failed in states else ""
    print(f"{len(states)} points: {counted}{unasked}")
