"""Everything that a row of metrics says, measured over the steps since the row before.

Where a row is made the device is drained (its loss is read): a window of steps ends there for the stopwatch, the phase
clock and the counters of energy alike. Evaluations, saves and traces stand apart in all of them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from models.config import ModelConfig
from models.placement import ExpertPlacement
from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator
from train.checkpoint.manifest import Progress
from train.ledger.events import now_ns
from train.ledger.tiles import Tiles
from train.metrics.cost import cost_row
from train.metrics.energy import EnergyMeter, energy_row
from train.metrics.routing import routing_row
from train.metrics.step_time import StepTime, sums_by_kind, time_row
from train.metrics.throughput import Throughput, peak_memory_gib
from train.step import StepResult
from train.trace.plan import TracePlan


@dataclass
class Meter:
    """Of one rank. All ranks call its methods together, in the same order."""

    comm: Communicator
    rank: int
    device: torch.device
    model: ModelConfig
    placement: ExpertPlacement
    throughput: Throughput
    step_time: StepTime
    energy: EnergyMeter | None
    plan: TracePlan
    tiles: Tiles
    gpu_hour_usd: float | None
    n_gpus: int
    """Of all ranks."""
    started: float
    """The attempt's start by time.monotonic()."""
    waited_s: dict[str, float] = field(default_factory=dict, init=False)
    """By kind, what this rank's brackets came to in the last window, whatever it waited for."""
    _begun: bool = field(default=False, init=False)
    """Whether a row was made."""

    def begin(self, after_step: int, bucket: str = "init_model") -> None:
        """Forget what was before, which was a `bucket` and no step. The next one is that after `after_step`."""
        self.tiles.end(bucket)
        self.tiles.start_at(after_step)
        self.throughput.end_window()
        self.comm.clock.end_window()
        if self.energy:
            self.energy.joules_since_last()

    @contextmanager
    def apart(self, phase: Phase) -> Iterator[None]:
        """Leave what is inside out of speed and energy, and time it as `phase`."""
        with (
            self.tiles.apart(phase),
            self.throughput.paused(),
            self.energy.paused() if self.energy else nullcontext(),
            self.comm.clock.during(phase),
        ):
            yield

    def row(self, progress: Progress, rate: float, result: StepResult, traced: bool) -> dict[str, float]:
        """The step's row, of the window that ends with it. Of `traced` steps the speed is not the run's: there is no
        perf/*, and what they took above the usual is `profile`."""
        # Before the device is waited for: NVML takes 5 ms to answer on an H100, which the device's work hides.
        joules = self.energy.joules_since_last() if self.energy else float("nan")
        row: dict[str, float] = {
            "train/step": progress.step,
            "train/tokens": progress.tokens,
            "train/loss": result.loss.item(),  # waits for the device
            "train/grad_norm": result.grad_norm.item(),
            "train/lr": rate,
        }
        tokens, seconds = self.throughput.tokens, self.throughput.seconds
        speed = self.throughput.end_window()
        if not traced:
            row |= speed
        row |= self._over_ranks(progress.step, traced, joules, tokens, seconds)
        if routed := routing_row(result.routing, self.model.moe, self.placement):
            row |= routed
            if self.model.moe.has_router_loss:
                row["train/router_loss"] = result.router_loss.item()
        row["mem/peak_gib"] = peak_memory_gib(self.device)
        return row | cost_row(self.gpu_hour_usd, self.n_gpus, time.monotonic() - self.started)

    def _over_ranks(self, step: int, traced: bool, joules: float, tokens: int, seconds: float) -> dict[str, float]:
        """What ranks tell each other of the window: its time by bucket, its energy, whether to trace soon."""
        first, self._begun = not self._begun, True
        own: dict[str, float] = {"joules": joules}
        window, ended = self.comm.clock.end_window(), now_ns()
        if window:
            self.waited_s = sums_by_kind(window.waits)
            own |= self.step_time.own(window, self.plan.usual_step_s() if traced else None)
            own["wants_trace"] = self.plan.wants([] if traced else window.step_s, self.rank)
        self.tiles.end_steps(step, ended, window, own)
        if window is None and self.n_gpus == 0:
            return {}
        by_rank = self.comm.all_gather_numbers(own)
        if any(by_rank.get("wants_trace", [])):
            self.plan.ask(step, self.rank)
        # The counters are read where the device still works: in the first row that is before most of its work.
        row = energy_row(by_rank["joules"], seconds, tokens) if not (traced or first) else {}
        return row | (time_row(by_rank, window.steps) if window else {})
