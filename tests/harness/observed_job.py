"""A job that an onlooker sees, and its books beside what was seen."""

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.observed import Life, observed
from harness.torchrun import REPOSITORY, TorchrunLaunch, start_torchrun
from harness.true_books import LOG, START, STEPS, Truth, differences
from train.ledger.books import Books
from train.ledger.buckets import EXPOSED, IN_STEPS, UNDIVIDED
from train.ledger.read import read_ledger
from train.ledger.records import StepsTile

JOB = (
    "model=tiny",
    "train.device=cpu",
    "strategy=fsdp",
    "train.steps=12",
    "train.log_every=1",
    "train.eval_sequences=0",
    "logging=off",
    "checkpoint.every=4",
)
GROUPS = {
    **dict.fromkeys((*IN_STEPS, UNDIVIDED, "warmup_compile"), STEPS),
    **dict.fromkeys(("init_process", "init_dist", "init_model"), START),
    **dict.fromkeys(("log", "other"), LOG),
}
"""Buckets that the onlooker cannot tell apart."""


def start(
    run: Path, ranks: int, *words: str, faults: str = "", restarts: int = 0, env: Mapping[str, str] | None = None
) -> TorchrunLaunch:
    """Start JOB with further `words`; its stamps lie beside `run`."""
    arguments = (str(run.parent / "stamps"), *JOB, *words, f"run.dir={run}", f"faults.inject=[{faults}]")
    env = {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"))), **(env or {})}
    words_of_torchrun = [f"--max-restarts={restarts}"]
    return start_torchrun(ranks, *arguments, module="harness.stamped", env=env, agent_words=words_of_torchrun)


def lived(started: TorchrunLaunch, succeeds: bool = True) -> list[Life]:
    """The lives of its workers, once it has ended."""
    with started, observed(started) as lives:
        done = started.wait(240)
    assert (done.returncode == 0) == succeeds, done.stderr[-4000:]
    return lives


def injected(run: Path, what: str, edge: str = "begin") -> int:
    """The injector's own stamp of its only such fault, ns."""
    lines = [json.loads(line) for path in (run / "faults").iterdir() for line in path.read_text().splitlines()]
    (found,) = (line for line in lines if line["what"] == what)
    return int(found[edge])


def excess_s(run: Path, rank: int, step: int, bucket: str) -> float:
    """Seconds that the tile with `step` of the first attempt's `rank` has in `bucket` above the median step's; the
    attempt's first step apart."""
    own = read_ledger(run).attempts[0].ranks[rank].own
    tiles = [event for event in own if isinstance(event, StepsTile) and event.first > 1]
    (its,) = (tile for tile in tiles if tile.first <= step <= tile.last)
    others = [tile.buckets.get(bucket, 0) / _n_steps(tile) for tile in tiles if tile is not its]
    return (its.buckets.get(bucket, 0) - _n_steps(its) * statistics.median(others)) / 1e9


def all_excess_s(run: Path, rank: int, step: int) -> dict[str, float]:
    """`excess_s` of all buckets of steps, what waits for others do as one: `waits`."""
    exposed = [name for name in IN_STEPS if name.startswith(EXPOSED)]
    found = {name: excess_s(run, rank, step, name) for name in IN_STEPS}
    return {"waits": sum(found.pop(name) for name in ("sync_wait", *exposed)), **found}


def _n_steps(tile: StepsTile) -> int:
    return tile.last - tile.first + 1


def compare(books: Books, true: Truth, ranks: int) -> None:
    """Say all that differ by more than 1 % of the wall or 0.2 s a rank, of which the larger."""
    assert sum(books.buckets.values()) == books.total  # to the nanosecond
    ours: dict[str, float] = {}
    for name, ns in books.buckets.items():
        ours[GROUPS.get(name, name)] = ours.get(GROUPS.get(name, name), 0.0) + ns / 1e9
    allowed = ranks * max(0.2, 0.01 * books.wall_ns / 1e9)
    table = differences({**true.buckets, "total": true.total}, {**ours, "total": books.total / 1e9})
    print(json.dumps({name: [round(a, 3), round(b, 3)] for name, (a, b) in table.items()}))
    wrong = {name: pair for name, pair in table.items() if abs(pair[0] - pair[1]) > allowed}
    assert not wrong, table
    assert books.mfu_in_step is not None
    assert books.speed_of_light == pytest.approx(books.ettr * books.mfu_in_step, rel=1e-12)
