"""One job among several: a torchrun of its own, that leaves its run folder, its log and how it ended.

    runs/NAME/       the run
    runs/NAME.log    what it printed
    runs/NAME.json   its words, and how it ended

A job with a summary is done; one that ended without has failed; any other is still to be run.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.jobs.patient_run import run_to_end
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
class TorchrunJob:
    """What one torchrun runs."""

    name: str
    """Of its folder."""
    words: tuple[str, ...]
    runs: Path
    nproc: int
    program: Sequence[str] = TRAIN
    """What python runs on each rank."""

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
        record = read_json(self.record_file) or {}
        if self.done or record.get("exit_code") is None:
            return None
        return Failure(record["exit_code"], record["last_lines"])

    @property
    def record_file(self) -> Path:
        """Its words, and how it ended."""
        return self.runs / f"{self.name}.json"

    def check(self, key: str) -> None:
        """Refuse numbers of another job, and those that cannot be read. `key`: the word that names the folder of all.

        Raises:
            ConfigError: if this one's folder holds them.
        """
        record = read_json(self.record_file)
        if record is None and not self.folder.exists():
            return
        if record is None or (record.get("words"), record.get("nproc")) != (list(self.words), self.nproc):
            before = "other words" if record is None else f"nproc={record.get('nproc')} {' '.join(record['words'])}"
            raise ConfigError(f"{self.folder} was run with {before}: name another folder in {key}=")
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

    def run(self, afresh: bool) -> None:
        """Run it to its end: `afresh` from its beginning, else from its newest checkpoint, if there is one. An
        exception in here (Ctrl-C) ends its ranks first."""
        if afresh:
            self.clear()
        self.write_record()
        program = [*self.program, *self.words, f"run.dir={self.folder}"]
        command = [sys.executable, "-m", "launch.local", *torchrun_arguments(self.nproc, program)]
        with self.log.open("a") as log:
            exit_code = run_to_end(command, os.environ | rank_environment(self.nproc), log.fileno(), timeout_s=None)
        if not self.done:
            self.write_record(exit_code=exit_code, last_lines=self.last_lines())

    def clear(self) -> None:
        """Remove what an earlier run of it left, so that the next is from its beginning."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    def write_record(self, **ended: Any) -> None:
        """Its words, and how it `ended`: not yet, if nothing is given."""
        self.runs.mkdir(parents=True, exist_ok=True)
        record = {"words": list(self.words), "nproc": self.nproc, "exit_code": None, "last_lines": []}
        write_json(self.record_file, record | ended)

    def last_lines(self) -> list[str]:
        """The end of its log, without what is empty; [] if there is none."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.strip()][-LAST_LINES:]
