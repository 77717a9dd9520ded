"""What rank 0 says of a run: metrics to file, wandb and screen while it goes, a summary when it ends."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from models.routing_totals import RoutingTotals
from parallel.settling import settling_steps
from train.failure import JobEnds
from train.ledger.ending import FENCED, FINISHED
from train.ledger.live import LiveBooks, goodput_row
from train.ledger.waterfall_html import waterfall_html
from train.metrics.config import LoggingConfig
from train.metrics.console import ProgressLine
from train.metrics.expert_load import ExpertLoadLog
from train.metrics.jsonl import METRICS_FILE, read_jsonl
from train.metrics.label import label_of
from train.metrics.recorder import Recorder
from train.metrics.summary import SUMMARY_FILE, Attempt, RunSummary, summarise

SLOW_SHARE, SLOW_PART = 0.6, 0.1
"""A rank is named as slow when it does not share that part of the waiting, which is that part of a step."""


class Report:
    """Rank 0's voice, over one attempt at a job."""

    def __init__(
        self,
        folder: Path,
        logging: LoggingConfig,
        config: Mapping[str, Any],
        total_steps: int,
        attempt: Attempt,
        started: float,
        number: int = 0,
        expert_load: bool = False,
    ) -> None:
        """Say what is about to run. `config` goes to wandb; `started` is the attempt's start by time.monotonic(),
        `number` its own in the ledger, 0 without one; `expert_load`: write every expert's."""
        self._folder, self._attempt, self._started, self._config = folder, attempt, started, config
        (folder / SUMMARY_FILE).unlink(missing_ok=True)  # of an earlier end, which this attempt goes beyond
        self._recorder = Recorder(folder, logging, config)
        self._expert_load = ExpertLoadLog(folder) if expert_load else None
        self._line = ProgressLine(total_steps, label=label_of(config))
        self._books = LiveBooks(folder, number, started)
        self._last_step = 0.0
        self._named: dict[float, float] = {}
        """Slow ranks, and the longest wait that was said of each, s."""
        millions = f"{attempt.parameters / 1e6:,.1f} M parameters, {attempt.parameters_active / 1e6:,.1f} M active"
        self._line.note(f"{folder}: {millions}, {attempt.world_size} × {attempt.device}")
        if attempt.resumed_after_step:
            self._line.note(f"resuming after step {attempt.resumed_after_step}")

    def log(self, row: Mapping[str, float], routing: RoutingTotals | None = None) -> None:
        """Record and show one row, and in it now and then the books. `routing`: its step's, of the global batch; None
        where nobody counts (a peer's model)."""
        before, self._last_step = self._last_step, row["train/step"]
        self._recorder.log(dict(row) | self._books.row())
        if self._expert_load and routing is not None:
            self._expert_load.append(int(self._last_step), routing)
        self._line.update(row)
        self._name_slow_rank(row, before)

    def note(self, text: str) -> None:
        """Say a line beside the metrics."""
        self._line.note(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back, and end the wandb run with the code that the process is about to have. An end in
        order has the books in a last row, which is made before the processes' own end is in them."""
        try:
            self._line.__exit__(kind, error, trace)
            last_word = FINISHED if error is None else error.cause if isinstance(error, JobEnds) else None
            if self._last_step and last_word and last_word != FENCED:
                self._close_books(last_word)
        finally:
            if self._expert_load:
                self._expert_load.close()
            self._recorder.__exit__(kind, error, trace)

    def _close_books(self, last_word: str) -> None:
        if books := self._books.last(last_word):
            self._recorder.page("goodput/waterfall", waterfall_html(books))
            self._recorder.log({"train/step": self._last_step} | goodput_row(books))

    def _name_slow_rank(self, row: Mapping[str, float], before: float) -> None:
        """Say whom the others wait for, if it is one rank and a good part of the step; again when twice as long. In an
        attempt's steps that settle it is chance who comes last, and in a traced one it is who traces. `before`: the
        last step that the row does not hold."""
        rank, waited_s = row.get("time/slow_rank"), row.get("time/sync_wait_s", 0.0)
        settled = self._attempt.resumed_after_step + settling_steps(self._config["strategy"]["cuda_graph"])
        if before < settled or "perf/step_time_s" not in row:
            return
        step_s = row["perf/step_time_s"]
        if rank is None or row["time/slow_rank_share"] < SLOW_SHARE or waited_s < SLOW_PART * step_s:
            return
        if waited_s >= 2 * self._named.get(rank, 0.0):
            self._named[rank] = waited_s
            self._line.note(
                f"step {row['train/step']}: others wait for rank {rank:.0f}, "
                f"{waited_s:.3f} s of a step of {step_s:.3f} s (mean over ranks)"
            )

    def summarise(self) -> None:
        """Write summary.json, over all attempts' rows, and print its table."""
        rows = read_jsonl(self._folder / METRICS_FILE)
        summary = summarise(
            rows, self._folder, self._attempt, wall_s=time.monotonic() - self._started, settings=self._config
        )
        summary.write(self._folder / SUMMARY_FILE)
        summary.print()


def finished_summary(folder: Path, steps: int) -> RunSummary | None:
    """The summary of a run that ended after `steps` steps; None if there is none, or it is of an end before that."""
    summary = RunSummary.read(folder / SUMMARY_FILE)
    # A copied folder's summary names the place that it came from.
    return replace(summary, run_dir=str(folder)) if summary and summary.steps == steps else None
