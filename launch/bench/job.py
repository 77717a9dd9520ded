"""One job of a comparison: one point in one round, a torchrun of its own that leaves its run folder and its log.

    runs/POINT-rN/       the run; POINT-trace/ of one that is traced, beside the rounds
    runs/POINT-rN.log    what it printed
    runs/POINT-rN.json   its words, and how it ended

A job with a summary is done; one that ended without has failed; any other is still to be run, from its beginning: half
a run measures nothing.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.bench.patient_run import run_to_end
from launch.bench.points import Point
from launch.local import rank_environment, torchrun_arguments
from models.config import ConfigError
from train.data.atomic_json import read_json, write_json
from train.metrics.summary import SUMMARY_FILE, RunSummary

LAST_LINES = 12
"""Of a log, kept of a job that failed."""
TRAIN = ("-m", "train")


@dataclass(frozen=True)
class Failure:
    """How a job ended that has no summary."""

    exit_code: int
    last_lines: list[str]
    """Of its log."""


@dataclass(frozen=True)
class Job:
    """What one torchrun runs."""

    point: Point
    round: int | None
    """1 for the first; None: of none, a step is traced, which slows it."""
    runs: Path
    nproc: int
    program: Sequence[str] = TRAIN
    """What python runs on each rank."""
    more: Sequence[str] = field(default_factory=list)
    """Words of this job alone, and flags."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.point.name}-{'trace' if self.round is None else f'r{self.round}'}"

    @property
    def folder(self) -> Path:
        """Of its run."""
        return self.runs / self.name

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.runs / f"{self.name}.log"

    @property
    def done(self) -> bool:
        """Whether it has numbers."""
        return (self.folder / SUMMARY_FILE).exists()

    @property
    def failure(self) -> Failure | None:
        """How it failed; None if it is done, or yet to be run."""
        record = read_json(self._record) or {}
        if self.done or record.get("exit_code") is None:
            return None
        return Failure(record["exit_code"], record["last_lines"])

    def check(self) -> None:
        """Refuse numbers of another job, and those that cannot be read.

        Raises:
            ConfigError: if this one's folder holds them.
        """
        record = read_json(self._record)
        if record is None and not self.folder.exists():
            return
        if record is None or (record.get("words"), record.get("nproc")) != (self._words, self.nproc):
            before = "other words" if record is None else f"nproc={record.get('nproc')} {' '.join(record['words'])}"
            raise ConfigError(f"{self.folder} was run with {before}: name another folder in to=")
        if self.done:
            self.summary()

    def summary(self) -> RunSummary:
        """Of a job that is done.

        Raises:
            ConfigError: if it cannot be read.
        """
        summary = RunSummary.read(self.folder / SUMMARY_FILE)
        if summary is None:
            raise ConfigError(f"{self.folder / SUMMARY_FILE} is not this version's: remove it to run that job again")
        return summary

    def run(self) -> None:
        """Run it to its end, from its beginning. An exception in here (Ctrl-C) ends its ranks first."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.runs.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"words": self._words, "nproc": self.nproc, "exit_code": None, "last_lines": []}
        write_json(self._record, record)
        program = [*self.program, *self._words, f"run.dir={self.folder}"]
        command = [sys.executable, "-m", "launch.local", *torchrun_arguments(self.nproc, program)]
        with self.log.open("w") as log:
            exit_code = run_to_end(command, os.environ | rank_environment(self.nproc), log.fileno(), timeout_s=None)
        if not self.done:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            write_json(self._record, record | {"exit_code": exit_code, "last_lines": lines[-LAST_LINES:]})

    @property
    def _words(self) -> list[str]:
        return [*self.point.words, *self.more]

    @property
    def _record(self) -> Path:
        return self.runs / f"{self.name}.json"
