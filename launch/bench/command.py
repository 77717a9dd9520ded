"""`switchyard bench to=FOLDER strategy=fsdp,ep key=value …`: configurations beside each other on this machine.

Each job is a torchrun of its own, interleaved in rounds: all points once, then all again the other way round, so that a
machine that grows warm or busy is no point's disadvantage. A folder that is not done goes on with the same words.
"""

import datetime
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain

import torch
from rich.progress import Progress, TextColumn

from launch.bench.job import Job
from launch.bench.limits import excesses
from launch.bench.machine import Machine, measure_machine
from launch.bench.order import Order, as_typed
from launch.bench.picture import Bar, draw
from launch.bench.plan import rounds_of
from launch.bench.result import PointResult, by_speed
from launch.bench.roofline import Line, caveats, roofline
from launch.bench.run_jobs import run_jobs
from launch.bench.table import print_bus, print_counts, print_results, print_roofline
from launch.clean_end import ended_cleanly
from launch.jobs.own_folder import own_folder
from launch.table_console import table_console
from train.data.atomic_json import write_json


def bench(words: Sequence[str]) -> int:
    """Run what is not done yet, write bench.json and bench.svg, and print a table.

    Returns:
        0 if every job has numbers, 1 if one failed or a count is above its limit.

    Raises:
        ConfigError: before any job is started, for words that one of them would not take, and for a folder that holds a
            job of the same name and other words, or that another bench writes to.
    """
    order = Order.parse(words)
    if order.yaml is not None:
        print(order.yaml, end="")
        return 0
    rounds = rounds_of(order)
    jobs = list(chain(*rounds))
    for job in jobs:
        job.check("to")
    console = table_console()
    shown = Progress(TextColumn("{task.description}"), console=console, transient=True)
    with ended_cleanly(), own_folder(order.folder, "to", "bench"), shown as progress:
        task = progress.add_task("what this machine can do")
        machine = measure_machine(order.folder, order.device, order.nproc)
        run_jobs(jobs, order.retry, progress, task, after=lambda: _write(order, words, machine, jobs))
    results = _write(order, words, machine, jobs)
    for complaint in machine.complaints:
        print(f"switchyard: {complaint}", file=sys.stderr)
    print_results(results, console)
    print_counts([result for result in results if result.counts], console)
    print_bus(machine.ceilings, machine.bus, console)
    ours = [result for result in results if result.summaries and result.point in order.points]
    for result in [result for result in ours if result.trace] or ours[:1]:  # without a trace all say much the same
        notes = caveats(order.configs[result.point.name], order.nproc, machine.ceilings)
        print_roofline(result.title, _roofline(order, result, machine), notes, result.trace, console)
    console.print(str(order.folder / "bench.json"), markup=False, highlight=False, soft_wrap=True)
    exceeded = excesses(order.limits, {result.point.name: result.counts for result in results})
    for line in exceeded:
        print(f"switchyard: {line}", file=sys.stderr)
    return 1 if exceeded or any(result.failures for result in results) else 0


def _write(order: Order, words: Sequence[str], machine: Machine, jobs: Sequence[Job]) -> list[PointResult]:
    """Write what there is of the comparison so far; the points, the fastest first."""
    points = [*order.points, *order.peers]
    results = by_speed([PointResult.read([job for job in jobs if job.point == point]) for point in points])
    plain = [result.plain() for result in results]
    for one, result in zip(plain, results, strict=True):
        if result.point in order.points:
            one["roofline"] = [asdict(line) | {"rate": line.rate} for line in _roofline(order, result, machine)]
    described = {
        "device": machine.ceilings.device if machine.ceilings else None,
        "ranks": order.nproc,
        "torch": torch.__version__,
        "ceilings": asdict(machine.ceilings) if machine.ceilings else None,
        "bus_bandwidth": machine.bus,
    }
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"command": as_typed("bench", words), "date": written, "machine": described, "points": plain}
    write_json(order.folder / "bench.json", content)
    if bars := [_bar(result) for result in results if result.summaries]:
        where = f"{machine.ceilings.device}, " if machine.ceilings else ""
        title = f"{where}{order.nproc} ranks, {order.rounds} rounds, {written[:10]}"
        (order.folder / "bench.svg").write_text(draw(bars, title))
    return results


def _roofline(order: Order, result: PointResult, machine: Machine) -> list[Line]:
    return roofline(order.configs[result.point.name], order.nproc, machine.ceilings, result.trace)


def _bar(result: PointResult) -> Bar:
    speed, step, mfu = map(result.spread, ("tokens_per_sec", "step_time_s", "mfu"))
    assert speed is not None
    assert step is not None
    label = f"{speed.median:,.0f} tokens/s" + (f", MFU {mfu.median:.1%}" if mfu else "")
    return Bar(result.title, label, result.breakdown, step.median)
