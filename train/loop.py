"""The training loop: steps, and what happens between them."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from models.config import ConfigError
from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator
from train.checkpoint.manifest import Progress
from train.checkpoint.store import CheckpointStore
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.counting import Counting
from train.data.loader import BatchLoader
from train.data.source import SampleStream
from train.evaluate import evaluate
from train.failure import JobEnds
from train.faults.guard import Guard
from train.faults.injector import Injector
from train.faults.non_finite import NonFiniteSteps
from train.faults.replicas import check_replicas
from train.faults.stop import Cause, Stopped
from train.meter import Meter
from train.optimizer import learning_rate
from train.report import Report
from train.step import OptimizerStep
from train.trace.traced_steps import TracedSteps


@dataclass
class Trainer:
    """Drives one job on one rank. All ranks run the same calls in the same order."""

    train: TrainConfig
    optim: OptimConfig
    checkpoint: CheckpointConfig
    step: OptimizerStep
    eval_micro_batch_size: int
    """Sequences per evaluation forward on each rank."""
    loader: BatchLoader
    heldout: SampleStream
    store: CheckpointStore
    meter: Meter
    traces: TracedSteps
    guard: Guard
    injector: Injector
    counting: Counting | None
    non_finite: NonFiniteSteps
    check_replicas_every: int
    """Steps, and before every checkpoint; 0: never."""
    report: Report | None
    """Where rank 0 writes; None on the other ranks."""
    comm: Communicator
    device: torch.device

    def run(self, progress: Progress) -> None:
        """Train from `progress` to the last step.

        Raises:
            JobEnds: on every rank after the same step: a stop was asked for, it has diverged, or replicas differ.
        """
        try:
            self._run_steps(progress)
        except JobEnds as ended:
            if not isinstance(ended, Stopped):  # that one has seen to it
                self.finish()
            raise

    def _run_steps(self, progress: Progress) -> None:
        first, save_owed = progress.step + 1, False
        self.non_finite.skipped = progress.skipped
        self.meter.begin(progress.step)
        while progress.step < self.train.steps:
            step = self.injector.step = progress.step + 1
            if self.traces.due_before(step):
                with self.meter.apart(Phase.profile):
                    self.traces.before(step)
            self.comm.clock.enter(Phase.data_wait)
            tokens_MBS = next(self.loader)
            rate = learning_rate(self.optim, step, self.train.steps)
            with self.counting.of_step() if self.counting else nullcontext():
                result = self.step(tokens_MBS, rate)
            self.comm.clock.enter(Phase.log)
            self.non_finite.issued(step, result.left_out)
            n_tokens = self.train.global_batch_size * (tokens_MBS.shape[-1] - 1)
            progress = Progress(step, progress.tokens + n_tokens)
            self.meter.throughput.count(n_tokens)
            self.store.poll()

            last = step == self.train.steps
            stopping = None if last else self.guard.agreed(result.asked)
            if stopping and not stopping.saves:
                self.guard.beat.at("shutdown")
                raise Stopped(stopping, step, saved=False)
            evaluating = self.train.eval_sequences > 0 and (last or _due(step, self.train.eval_every)) and not stopping
            saves = self.checkpoint.at_end or self.checkpoint.every > 0
            saving = (last and self.checkpoint.at_end) or _due(step, self.checkpoint.every) or bool(stopping and saves)
            saving |= save_owed
            traced = self.traces.traced(step)
            # A step that is followed by other work is measured too: that drains the device, and so what is left out of
            # the stopwatch is that work alone, with no step still running in it.
            other_work = evaluating or saving or bool(stopping) or traced or self.traces.due_before(step + 1)
            other_work |= self.non_finite.must_go_back
            if step == first or other_work or last or _due(step, self.train.log_every):
                row = self.meter.row(progress, rate, result, self.traces.slowed(step)) | self.store.take_metrics()
                self.non_finite.settle()
                row["train/skipped_steps"] = self.non_finite.take_count()
                if traced:  # at once: whatever came first would be in the trace
                    with self.meter.apart(Phase.profile):
                        self.traces.end(step, self.meter.waited_s)
                if evaluating:
                    with self.meter.apart(Phase.eval):
                        row["eval/loss"] = self.evaluate()
                if self.report and self.guard.fence.still_ours():
                    self.report.log(row, result.routing)
            if self.non_finite.must_go_back and stopping:  # the next start goes back: here time may not do
                self.stop(stopping, step, saved=False, why_not="its last steps were not finite")
            if self.non_finite.must_go_back:
                progress, save_owed = self.go_back(), False
                continue
            # A step that was left out is no place to come back to: the next one is.
            save_owed = saving and self.non_finite.in_a_row > 0 and not (last or stopping)
            saving = saving and not save_owed
            if self.check_replicas_every and (saving or _due(step, self.check_replicas_every)):
                check_replicas(self.step.engine, self.comm, step)
            if saving:
                progress = replace(progress, skipped=self.non_finite.skipped)  # settled above, with the row
                with self.meter.apart(Phase.ckpt_save):
                    self.store.save(self.step.engine, progress, self.checkpoint.keep)
            if stopping:
                self.stop(stopping, step, saving)
        self.finish(asked=progress.step)

    def finish(self, asked: int | None = None) -> None:
        """Wait for the last save; raises as CheckpointStore.finish."""
        try:
            with self.meter.apart(Phase.ckpt_save) if self.store.under_way else nullcontext():
                self.store.finish(asked)
        finally:
            self.guard.beat.at("shutdown")

    def stop(self, cause: Cause, step: int, saved: bool, **why_not: str) -> NoReturn:
        """End after `step`, which was saved if the disk took it. A save that failed makes it no less of a stop."""
        try:
            self.finish(asked=step)
        except ConfigError as error:
            raise Stopped(cause, step, saved=False, why_not=str(error)) from error
        raise Stopped(cause, step, saved, **why_not)

    def go_back(self) -> Progress:
        """To the newest checkpoint; steps after it will be done again, and have rows again."""
        self.guard.beat.at("ckpt_load")
        resumed = self.store.resume(self.step.engine)
        progress = resumed.progress
        self.non_finite.went_back(progress.step, resumed.passed_over)
        self.non_finite.skipped = progress.skipped
        self.guard.beat.at("log", progress.step)
        self.loader.go_to(progress.step)
        self.meter.begin(progress.step, "ckpt_load")
        return progress

    def evaluate(self) -> float:
        """Held-out loss, nats per token."""
        return evaluate(
            self.step.engine,
            self.heldout,
            self.step.make_batch,
            self.train.eval_sequences,
            self.eval_micro_batch_size,
            self.comm,
            self.device,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
