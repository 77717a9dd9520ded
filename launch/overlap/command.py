"""`switchyard overlap KNOB to=FOLDER strategy=… key=value …`: is it really overlapping?

Jobs with the knob off and on, interleaved in rounds as `switchyard bench` does it. Those of the first round trace their
last step, after all that a speed is read from. A folder that is not done goes on with the same words.
"""

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
from rich.progress import Progress, TextColumn

from launch.bench.job import Job
from launch.bench.order import as_typed
from launch.bench.plan import forth_and_back
from launch.bench.result import PointResult
from launch.bench.run_jobs import run_jobs
from launch.bench.table import print_failures, say
from launch.bench.traced import trace_words
from launch.clean_end import ended_cleanly
from launch.jobs.own_folder import own_folder
from launch.jobs.points import Point
from launch.overlap.proof import Proof
from launch.overlap.request import Request
from launch.overlap.side import Side
from launch.overlap.table import print_proofs
from launch.table_console import table_console
from train.data.atomic_json import write_json
from train.metrics.jsonl import strict_value

FILE = "overlap.json"
TRACED = 1
"""The round whose jobs trace a step: with more rounds, later, it is still that one."""


def overlap(words: Sequence[str]) -> int:
    """Run what is not done yet, write overlap.json, and print a table.

    Returns:
        0 if every job has numbers, 1 if one failed.

    Raises:
        ConfigError: before any job is started, for words that one of them would not take, and for a folder that holds a
            job of the same name and other words, or that another command writes to.
    """
    request = Request.parse(words)
    if request.print_config:
        for point in request.points:
            print(f"# {point.name}\n{request.composed[point.name].yaml}", end="")
        return 0
    jobs = jobs_of(request)
    for job in jobs:
        job.check("to")
    console = table_console()
    shown = Progress(TextColumn("{task.description}"), console=console, transient=True)
    with ended_cleanly(), own_folder(request.folder, "to", "overlap"), shown as progress:
        run_jobs(jobs, request.retry, progress, progress.add_task(""), after=lambda: None)
        results = {point.name: PointResult.read(_of(jobs, point)) for point in request.points}
        sides = {point.name: Side.read(_of(jobs, point), results[point.name]) for point in request.points}
        proofs = [
            Proof.of(name, two.values, *(sides[point.name] for point in two.points))
            for name, two in request.sides.items()
        ]
        _write(request, words, proofs, sides)
    print_proofs(proofs, request.refused, request.device, console)
    for name, two in request.sides.items():
        if two.added:
            say(console, f"{name}: off and on with {' '.join(two.added)}")
    for label in dict.fromkeys(s.label for result in results.values() for s in result.summaries if s.label):
        say(console, f"these are figures of {label}")
    print_failures(list(results.values()), console)
    say(console, str(request.folder / FILE))
    return 1 if any(result.failures for result in results.values()) else 0


def jobs_of(request: Request) -> list[Job]:
    """In the order in which they run."""
    runs = request.folder / "runs"

    def job(point: Point, number: int) -> Job:
        traced = trace_words(request.composed[point.name].config.train.steps) if number == TRACED else []
        return Job.of(point, number, runs, request.nproc, more=[*traced, *request.flags])

    return list(chain(*forth_and_back(request.rounds, request.points, job)))


def _of(jobs: Sequence[Job], point: Point) -> list[Job]:
    return [job for job in jobs if job.point == point]


def _write(request: Request, words: Sequence[str], proofs: Sequence[Proof], sides: dict[str, Side]) -> None:
    devices = [side.device for side in sides.values() if side.device]
    content = {
        "command": as_typed("overlap", words),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"device": devices[0] if devices else None, "ranks": request.nproc, "torch": torch.__version__},
        "knobs": [_plain(proof, request) for proof in proofs],
        "refused": request.refused,
    }
    write_json(request.folder / FILE, content)


def _plain(proof: Proof, request: Request) -> dict[str, Any]:
    """As it stands in overlap.json."""
    plain = asdict(proof)
    for row, one in zip(proof.hidden, plain["hidden"], strict=True):
        one |= {"hidden": row.hidden, "taken_off": row.taken_off}
    if proof.losses:
        plain["losses"] = {name: strict_value(value) for name, value in plain["losses"].items()}
        plain["losses"]["reason"] = proof.losses.reason
    points = request.sides[proof.name].points
    return plain | {side: list(point.words) for side, point in zip(("words_off", "words_on"), points, strict=True)}
