"""What a run amounts to: a dozen numbers, as a file and as a table."""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from parallel.settling import settling_steps
from train.metrics.breakdown import mean_breakdown
from train.metrics.jsonl import plain_value, strict_value
from train.metrics.label import label_of
from train.metrics.peak import Peak
from train.metrics.verdict import judge

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Attempt:
    """What one start of a job runs on: a later one may have other ranks, or another device."""

    resumed_after_step: int
    """Steps that earlier attempts left done; 0 for the first."""

    world_size: int
    """Ranks."""

    device: str
    """Name of rank 0's device."""

    peak: Peak
    """What MFU is a fraction of."""

    parameters: int
    """Parameters of the model, in all."""

    parameters_active: int
    """Parameters that one token uses."""

    time_source: str = "none"
    """What `time/*` is measured with, and which waits it does not see."""


@dataclass(frozen=True)
class RunSummary:
    """One run in numbers: what was learnt is the job's, speed and memory are the last attempt's (see `summarise`)."""

    run_dir: str
    """The run's folder."""

    steps: int
    """Steps of the job so far."""

    tokens: int
    """Tokens trained on so far, over all ranks."""

    loss_first: float
    """Training loss of the first logged step, per token."""

    loss_last: float
    """Training loss of the last logged step, per token."""

    eval_loss: float | None
    """Last held-out loss, per token; None if there was no evaluation."""

    tokens_per_sec: float
    """Median, over all ranks."""

    step_time_s: float
    """Median seconds a step."""

    step_time_iqr_s: float
    """Spread of the step times: third quartile less the first, in seconds."""

    mfu: float | None
    """Median model FLOPs utilisation, causal attention counted at half; None if it was not logged."""

    mfu_palm: float | None
    """The same with attention counted in full, as PaLM does."""

    peak_tflops: float
    """TFLOP/s of one device that MFU is a fraction of."""

    peak_source: str
    """Where that number is from."""

    peak_memory_gib: float | None
    """Largest memory in use on rank 0, GiB; None if it was not logged."""

    world_size: int
    """Ranks."""

    device: str
    """Name of rank 0's device."""

    parameters: int
    """Parameters of the model, in all."""

    parameters_active: int
    """Parameters that one token uses."""

    wall_s: float | None
    """Seconds from the start of the last attempt to its end; None while it runs, or if it died."""

    bound_by: str | None = None
    """What bounds a step, its share, and what to try first; None where steps were not divided into phases."""

    ettr: float | None = None
    """The part of all the job's rank-seconds, every attempt's and those between, that saved steps took."""

    label: str | None = None
    """What its numbers must not be shown without; None for nothing."""

    def write(self, path: Path) -> None:
        """Write as strict JSON (NaN becomes "NaN"), replacing `path` in one step. Raises OSError."""
        fields = {name: strict_value(value) for name, value in asdict(self).items()}
        partial = path.with_name(path.name + ".tmp")
        partial.write_text(json.dumps(fields, indent=2, allow_nan=False) + "\n")
        os.replace(partial, path)

    @classmethod
    def read(cls, path: Path) -> "RunSummary | None":
        """What was written to `path`; None if nothing was, or by another version: metrics.jsonl has it all."""
        try:
            return cls(**{name: plain_value(value) for name, value in json.loads(path.read_text()).items()})
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def table(self) -> Table:
        """Two columns: what, and how much; a number that is not there has no line."""
        table = Table(show_header=False, title="run", title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in self._lines():
            table.add_row(name, value)
        return table

    def print(self, console: Console | None = None) -> None:
        """Print the table, and under it the one command that looks at the run."""
        console = console or Console()
        console.print(self.table(), markup=False)
        # Outside the table, and unwrapped: it is there to be copied.
        console.print(f"switchyard show {self.run_dir}", markup=False, highlight=False, soft_wrap=True)

    def _lines(self) -> Iterable[tuple[str, str]]:
        if self.label is not None:
            yield "label", self.label
        yield "steps", f"{self.steps:,}"
        yield "tokens", f"{self.tokens:,}"
        yield "loss", f"{self.loss_first:.4f} → {self.loss_last:.4f}"
        if self.eval_loss is not None:
            yield "held-out loss", f"{self.eval_loss:.4f}"
        yield "tokens/s", f"{self.tokens_per_sec:,.0f}"
        yield "step time", f"{self.step_time_s * 1e3:,.1f} ms (interquartile range {self.step_time_iqr_s * 1e3:,.1f})"
        if self.bound_by is not None:
            yield "bound by", self.bound_by
        if self.mfu is not None:
            yield "MFU", f"{self.mfu:.1%}" + (f" ({self.mfu_palm:.1%} as PaLM counts)" if self.mfu_palm else "")
        yield "peak", f"{self.peak_tflops:,.4g} TFLOP/s a device, {self.peak_source}"
        if self.peak_memory_gib is not None:
            yield "peak memory", f"{self.peak_memory_gib:.2f} GiB"
        if self.ettr is not None:
            yield "goodput", f"{self.ettr:.1%} of the job's rank-seconds were steps that stay (switchyard goodput)"
        yield "parameters", f"{self.parameters:,} ({self.parameters_active:,} active)"
        yield "ranks", f"{self.world_size} × {self.device}"
        if self.wall_s is not None:
            yield "wall", f"{self.wall_s:,.1f} s"
        yield "run folder", self.run_dir


def summarise(
    rows: Iterable[Mapping[str, Any]],
    run_dir: Path,
    attempt: Attempt,
    wall_s: float | None,
    settings: Mapping[str, Any],
) -> RunSummary:
    """A run's summary from its rows of metrics, as `read_jsonl` returns them, and its configuration as plain values.

    The medians are over the attempt's own steps less its warm-up, see `steady_rows`. The losses leave out nothing.

    Raises ValueError if no row holds a loss and a speed; KeyError for a loss without `train/tokens`.
    """
    standing = standing_rows(rows)
    trained = [row for row in standing if "train/loss" in row]
    if not any("perf/step_time_s" in row for row in trained):
        raise ValueError("no step was logged: there is nothing to summarise")
    steady = steady_rows(trained, attempt.resumed_after_step, settings)
    step_times = _column(steady, "perf/step_time_s")
    evals = _column(standing, "eval/loss")
    return RunSummary(
        run_dir=str(run_dir),
        steps=trained[-1]["train/step"],
        tokens=trained[-1]["train/tokens"],
        loss_first=trained[0]["train/loss"],
        loss_last=trained[-1]["train/loss"],
        eval_loss=evals[-1] if evals else None,
        tokens_per_sec=statistics.median(_column(steady, "perf/tokens_per_sec")),
        step_time_s=statistics.median(step_times),
        step_time_iqr_s=interquartile_range(step_times),
        mfu=_median_or_none(steady, "perf/mfu"),
        mfu_palm=_median_or_none(steady, "perf/mfu_palm"),
        peak_tflops=attempt.peak.tflops,
        peak_source=attempt.peak.source,
        peak_memory_gib=max(_column(_own_rows(trained, attempt.resumed_after_step), "mem/peak_gib"), default=None),
        world_size=attempt.world_size,
        device=attempt.device,
        parameters=attempt.parameters,
        parameters_active=attempt.parameters_active,
        wall_s=wall_s,
        label=label_of(settings),
        ettr=goodput[-1] if (goodput := _column(standing, "goodput/ettr")) else None,
        bound_by=verdict.sentence(settings) if (verdict := judge(mean_breakdown(steady))) else None,
    )


def standing_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows that still count, one a step: a row of a smaller step than the last one's takes back every step after it
    (a restart from an earlier checkpoint), and rows of one step are merged."""
    by_step: dict[int, dict[str, Any]] = {}
    for row in rows:
        step = int(row["train/step"])
        while by_step and next(reversed(by_step)) > step:
            by_step.popitem()
        by_step.setdefault(step, {}).update(row)
    return list(by_step.values())


def steady_rows(
    rows: Sequence[Mapping[str, Any]], resumed_after_step: int, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Those of the `rows` that stand which an attempt's speed is read from: its own that have one, less the warm-up:
    the first min(10, n // 5) of n, where caches fill, and all that hold a step of the attempt's which compiles or
    writes CUDA graphs down. One alone stays.
    """
    own = _own_rows(rows, resumed_after_step)
    settled = resumed_after_step + settling_steps(settings["strategy"].get("cuda_graph", False))  # older runs have none
    n_settling = 1 + sum(resumed_after_step < row["train/step"] < settled for row in own)
    return own[max(n_settling, min(10, len(own) // 5)) :] or own[-1:]


def _own_rows(rows: Sequence[Mapping[str, Any]], resumed_after_step: int) -> list[dict[str, Any]]:
    """Steps that were traced deeply have no speed. An attempt that has none yet is shown with its predecessors'."""
    timed = [dict(row) for row in rows if "perf/step_time_s" in row]
    return [row for row in timed if row["train/step"] > resumed_after_step] or timed


def _column(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def _median_or_none(rows: list[dict[str, Any]], key: str) -> float | None:
    column = _column(rows, key)
    return statistics.median(column) if column else None


def interquartile_range(values: list[float]) -> float:
    """Third quartile less the first; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first
