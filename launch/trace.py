"""`switchyard trace RUN|FILE…`: what hid what in the steps that were traced."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from models.config import ConfigError
from train.trace.reduce import sweep_file
from train.trace.sweep import KERNELS, Sweep
from train.trace.tracer import TRACES, summary_beside

TRACED = "step-*/rank-*.json.gz"


def trace(words: Sequence[str]) -> int:
    """Print a table for each trace file among `words`, and for every trace of each run folder.

    Raises:
        ConfigError: if one is neither, a run has no trace, or a trace cannot be swept.
    """
    if not words:
        raise ConfigError("trace takes run folders and trace files: switchyard trace runs/NAME")
    console = Console(markup=False)
    for path in [path for word in words for path in _files(Path(os.path.expanduser(word)))]:
        console.print(table(_swept(path), str(path)))
    return 0


def _swept(path: Path) -> Sweep:
    """The trace, with the clock's brackets where they were kept beside it."""
    swept, summary = sweep_file(path), summary_beside(path)
    if not summary.exists():
        return swept
    try:
        return replace(swept, waited_s=json.loads(summary.read_text()).get("waited_s", {}))
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{summary} is damaged: take it away, and the trace is read without it") from error


def table(sweep: Sweep, title: str) -> Table:
    """Three columns: what, how many ms, and of the span."""
    printed = Table(title=title, title_justify="left", show_header=False)
    printed.add_column(overflow="fold")
    printed.add_column(justify="right", no_wrap=True)
    printed.add_column(justify="right", no_wrap=True)
    for name, seconds in _lines(sweep):
        share = f"{seconds / sweep.span_s:.1%}" if sweep.span_s else ""
        printed.add_row(name, f"{seconds * 1e3:,.3f} ms", share)
    return printed


def _files(named: Path) -> list[Path]:
    if not named.exists():
        raise ConfigError(f"{named} does not exist: name a run folder or a trace file")
    if named.is_file():
        return [named]
    files = sorted((named / TRACES).glob(TRACED), key=lambda path: (path.parent.name, len(path.name), path.name))
    if not files:
        raise ConfigError(f"{named} has no {TRACES}/{TRACED}: name a run that was traced, or a trace file")
    return files


def _lines(sweep: Sweep) -> Iterable[tuple[str, float]]:
    on_device = sweep.source == KERNELS
    yield f"span, of {sweep.n_kernels:,} kernels" if on_device else f"span, of {sweep.source}", sweep.span_s
    yield "compute", sweep.compute_s
    yield "communication", sweep.communication_s
    yield from _indented(sweep.communication_by_kind_s)
    yield "both at once", sweep.both_s
    yield "exposed communication", sweep.exposed_s
    yield from _indented(sweep.exposed_by_kind_s)
    if sweep.stream_waits_s:
        yield "the compute stream waited", sum(sweep.stream_waits_s.values())
        yield from _indented(sweep.stream_waits_s)
    if sweep.waited_s:
        yield "the same by the clock's brackets" if on_device else "the clock's brackets", sum(sweep.waited_s.values())
        yield from _indented(sweep.waited_s)
    yield f"idle, {sweep.n_gaps:,} gaps", sweep.idle_s
    yield "  the largest gap", sweep.largest_gap_s
    if on_device:
        yield f"  waiting for the host, {sweep.n_host_gaps:,} gaps", sweep.host_gaps_s
    ran = "run time of compute kernels" if on_device else "compute phases, without their waits"
    yield ran, sum(sweep.compute_by_category_s.values())
    yield from _indented(sweep.compute_by_category_s)
    for name, seconds in sweep.unknown_kinds_s.items():
        yield f"of unknown kind: {name}", seconds


def _indented(seconds: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    for name, of_it in seconds.items():
        yield f"  {name}", of_it
