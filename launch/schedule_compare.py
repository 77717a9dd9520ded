"""`switchyard schedule compare pp=8,16 microbatches=32 cells=RUN`: which schedule, and is it worth pairing?

Every schedule that can run, on paper, with and without pairs of a forward and a backward that hide the all-to-all; and,
where runs are there, beside what was measured.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.bench.picture import Bar, draw
from launch.measured_cells import MeasuredRun, with_ranks
from launch.picture_file import write_picture
from launch.schedule_words import time, whole
from launch.table_console import table_console
from models.config import ConfigError
from parallel.pipeline.cell_times import CellTimes
from parallel.pipeline.contest import Contest, Entry, hold_contest
from train.metrics.breakdown import WALL

USAGE = "switchyard schedule compare pp=8 microbatches=32 cells=runs/NAME"
TIMES = ("forward", "input", "weight", "all_to_all", "send")
MAY_BE_0 = ("all_to_all", "send")
KEYS = ("pp", "microbatches", "stages_per_rank", "cells", "ep", "measured", "attention", *TIMES)


@dataclass(frozen=True)
class CompareOrder:
    """The words after `switchyard schedule compare`, sorted."""

    sizes: list[tuple[int, int]]
    """Ranks and micro-batches."""
    stages_per_rank: int | None
    times: CellTimes
    run: MeasuredRun | None
    """Whose cells they are."""
    ep: int | None
    given: tuple[str, ...]
    """Times that were typed."""
    measured: list[MeasuredRun]
    svg: Path | None

    @classmethod
    def parse(cls, words: Sequence[str]) -> "CompareOrder":
        """Sort `words`.

        Raises:
            ConfigError: for a word or a value that does not exist, unless sizes are given, and for a folder that is no
                run that was measured.
        """
        given: dict[str, str] = {}
        rest = list(words)
        while rest:
            key, equals, value = rest.pop(0).partition("=")
            if key == "--svg":
                value = value if equals else rest.pop(0) if rest else ""
                if not value:
                    raise ConfigError("--svg lacks its file: write --svg FILE")
            elif not equals or key not in KEYS:
                raise ConfigError(f"{key}{equals}{value}: schedule compare takes {', '.join(KEYS)}, and --svg FILE")
            given[key] = value
        for key in ("pp", "microbatches"):
            if key not in given:
                raise ConfigError(f"schedule compare needs {key}=…: {USAGE}")
        run = MeasuredRun.read(Path(os.path.expanduser(given["cells"]))) if "cells" in given else None
        ep = whole("ep", given["ep"]) if "ep" in given else None
        if ep and not run:
            raise ConfigError(f"ep={ep} scales what was measured: set cells=RUN, or leave it out for all_to_all=TIME")
        times = (with_ranks(run, ep) if ep else run.cells) if run else CellTimes()
        typed: dict[str, Any] = {key: time(key, given[key], key in MAY_BE_0) for key in TIMES if key in given}
        if "attention" in given:
            typed["attention"] = _part("attention", given["attention"])
        measured = [
            MeasuredRun.read(Path(os.path.expanduser(name))) for name in given.get("measured", "").split(",") if name
        ]
        if measured and not run:
            raise ConfigError("measured=… is set beside what cells=RUN says: set that too")
        ranks, batches = ([whole(key, one) for one in given[key].split(",")] for key in ("pp", "microbatches"))
        return cls(
            list(product(ranks, batches)),
            whole("stages_per_rank", given["stages_per_rank"]) if "stages_per_rank" in given else None,
            replace(times, **typed),
            run,
            ep,
            tuple(typed),
            measured,
            Path(os.path.expanduser(given["--svg"])) if "--svg" in given else None,
        )


def compare(words: Sequence[str]) -> int:
    """Print a table for each number of ranks and micro-batches, what all of them take for granted, and what was
    measured; draw the tables into a file.

    Raises:
        ConfigError: for words that make no sense, or a file that cannot be written.
    """
    order = CompareOrder.parse(words)
    checks = [_check(run, order.run) for run in order.measured if order.run]
    contests = [hold_contest(pp, m, order.times, order.stages_per_rank) for pp, m in order.sizes]
    console = table_console()
    for contest in contests:
        if contest.entries:
            console.print(_table(contest))
        for line in contest.refused:
            _say(console, f"not among them: {line}")
    for line in [*_assumptions(order), *checks]:
        _say(console, line)
    if order.svg:
        write_picture(order.svg, "--svg", _picture(contests, order).encode())
    return 0


def _table(contest: Contest) -> Table:
    title = f"{contest.pp} ranks, {contest.micro_batches} micro-batches, parts of the step's time"
    table = Table(title=title, title_justify="left")
    table.add_column("schedule", no_wrap=True)
    for column in ("step", "compute", "exposed all-to-all", "bubble", "all-to-all hidden", "activations", "weights"):
        table.add_column(column, justify="right")
    for entry in contest.entries:
        parts = (f"{part:.1%}" for part in (entry.compute, entry.exposed, entry.bubble, entry.hidden))
        table.add_row(_named(entry), f"{entry.makespan:.5g}", *parts, f"{entry.activations:g}", f"{entry.copies}×")
    return table


def _named(entry: Entry) -> str:
    return f"{entry.name.value}, paired" if entry.paired else entry.name.value


def _times(order: CompareOrder) -> str:
    names = [*TIMES, "attention"]
    return " ".join(f"{name}={getattr(order.times, name):.4g}" for name in names)


def _assumptions(order: CompareOrder) -> list[str]:
    run = order.run
    lines = [
        f"a rank's share of the model takes, of a micro-batch: {_times(order)}; all_to_all each way",
        "stages are equal (embedding and head weigh nothing; those of measured=… are as by FLOPs), so are ranks, and a "
        "share is as large whatever pp is",
        "alone, a cell waits for its all-to-alls; a pair hides them as two streams in the canonical order do "
        "(parallel/pipeline/cell_times.py), and none of the messages between stages",
        "activations: micro-batches alive at once on the worst rank, each by the part of the share that it is in",
        "not in it: gradients' reduction, the optimizer, and whatever else is done once a step",
    ]
    if run:
        but = f"; not {', '.join(order.given)}, as typed" if order.given else ""
        lines.append(f"times are of {run.folder}: {run.described()}, {run.world_size} × {run.device}{but}")
        traced = run.traced_ep_s is not None
        source = "a traced step's, on the fastest rank" if traced else "what was exposed: none was traced"
        lines.append(f"all-to-alls are {source}; backward is half inputs' and half weights' gradients")
        if order.ep:
            bandwidth = f"as many bytes a second as with ep={run.degrees.ep}"
            lines.append(f"ep={order.ep}: (ep-1)/ep of all rows travel, {bandwidth}")
    return lines


def _check(run: MeasuredRun, of: MeasuredRun) -> str:
    """What was measured beside what paper says of it."""
    paper, measured = run.simulated(of).makespan, run.measured_s
    late = run.breakdown.get("sync_wait", 0.0)
    beside = f", and {late * 1e3:,.1f} ms for late ranks" if late > 0.01 * measured else ""
    return (
        f"{run.folder}: {run.described()}: on paper {paper * 1e3:,.1f} ms, measured {measured * 1e3:,.1f} ms"
        f" ({paper / measured - 1:+.1%}{beside})"
    )


def _picture(contests: Sequence[Contest], order: CompareOrder) -> str:
    """A bar for each schedule, as long as its step; the sizes once if there is one choice of them."""
    several, times = len(contests) > 1, order.times
    sizes = [f"{contest.pp} ranks, {contest.micro_batches} micro-batches" for contest in contests]
    bars = [
        _bar(f"{_named(entry)}, {size}" if several else _named(entry), entry, times.forward / times.compute)
        for contest, size in zip(contests, sizes, strict=True)
        for entry in contest.entries
    ]
    return draw(bars, _times(order) if several else f"{sizes[0]}: {_times(order)}")


def _bar(name: str, entry: Entry, forward: float) -> Bar:
    """`forward`: its part of compute."""
    parts = {
        "compute_fwd": entry.compute * forward,
        "compute_bwd": entry.compute * (1 - forward),
        "exposed_comm/ep": entry.exposed,
        "bubble": entry.bubble,
        WALL: 1.0,
    }
    seconds = {part: share * entry.makespan for part, share in parts.items()}
    return Bar(name, f"compute {entry.compute:.1%}", seconds, entry.makespan)


def _part(key: str, text: str) -> float:
    value = time(key, text, may_be_0=True)
    if value > 1:
        raise ConfigError(f"{key}={text}: it is a part of compute; set it to 0 … 1")
    return value


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
