"""The profiler's life: one step of warm-up, one step traced, exported, swept, forgotten."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from train.trace.reduce import sweep_file

TRACES = "traces"
"""In a run's folder: step-00000100/rank-0.json.gz, and rank-0.summary.json beside it."""


class Tracer:
    """Traces single steps of this rank. The caller steps; what this costs is the caller's to book.

        begin()      the profiler attaches: a step of warm-up follows, since CUPTI's start would be seen as one
                     giant collective
        step()       the step to be traced follows
        end(100)     export and sweep, which block for seconds

    Shapes, stacks and memory are not recorded: shapes would keep tensors alive.
    """

    def __init__(self, folder: Path, rank: int, device: torch.device) -> None:
        """`folder`: the run's."""
        self._folder, self._rank, self._device = folder, rank, device
        self._profile: profile | None = None

    def begin(self) -> None:
        """Attach the profiler, before the step of warm-up. If it cannot be: one warning, and nothing is traced."""
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, schedule=schedule(wait=0, warmup=1, active=1, repeat=1))
        self._guarded("the profiler does not start", self._profile.start)

    def step(self) -> None:
        """Start recording, after the step of warm-up and before the one to be traced.

        Waits for the device: what it still had to run of the warm-up would be counted in the traced step.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if self._profile:
            self._guarded("the profiler does not record", self._profile.step)

    def end(self, step: int, waited_s: Mapping[str, float] | None = None) -> Path:
        """Stop, write the trace of step `step` and its summary beside it; the trace's path. `waited_s`: by kind, what
        the clock's brackets came to in the step.

        Whatever goes wrong with the files (a full disk, a kernel that the table does not have) is one warning in the
        log: the trace is then missing, or stays without its summary.
        """
        path = self._folder / TRACES / f"step-{step:08d}" / f"rank-{self._rank}.json.gz"
        finished, self._profile = self._profile, None

        def write() -> None:
            assert finished is not None
            finished.stop()
            _export(finished, path)
            replace(sweep_file(path), waited_s=dict(waited_s or {})).write(summary_beside(path))

        if finished:
            self._guarded(f"trace of step {step}", write)
        return path

    def _guarded(self, what: str, act: Callable[[], None]) -> None:
        """A trace is no reason to end a job."""
        try:
            act()
        except Exception as error:
            self._profile = None
            logging.getLogger(__name__).warning("%s: %s: %s", what, type(error).__name__, error)


def summary_beside(trace: Path) -> Path:
    """Where a trace's sweep is kept."""
    return trace.with_name(trace.name.removesuffix(".json.gz") + ".summary.json")


def _export(finished: profile, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(str(path))
    finally:
        # A profile refers to itself: its events would stay until the garbage collector comes by.
        finished.profiler = None
