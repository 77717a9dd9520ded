"""The training loop: steps, and what happens between them."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator
from train.checkpoint.manifest import Progress
from train.checkpoint.store import CheckpointStore
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.data.loader import BatchLoader
from train.data.source import SampleStream
from train.evaluate import evaluate
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
    report: Report | None
    """Where rank 0 writes; None on the other ranks."""
    comm: Communicator
    device: torch.device

    def run(self, progress: Progress) -> None:
        """Train from `progress` to the last step."""
        first = progress.step + 1
        self.meter.begin(progress.step)
        for step in range(first, self.train.steps + 1):
            if self.traces.due_before(step):
                with self.meter.apart(Phase.profile):
                    self.traces.before(step)
            self.comm.clock.enter(Phase.data_wait)
            tokens_MBS = next(self.loader)
            rate = learning_rate(self.optim, step, self.train.steps)
            result = self.step(tokens_MBS, rate)
            self.comm.clock.enter(Phase.log)
            n_tokens = self.train.global_batch_size * (tokens_MBS.shape[-1] - 1)
            progress = Progress(step, progress.tokens + n_tokens)
            self.meter.throughput.count(n_tokens)
            self.store.poll()

            last = step == self.train.steps
            evaluating = self.train.eval_sequences > 0 and (last or _due(step, self.train.eval_every))
            saving = (last and self.checkpoint.at_end) or _due(step, self.checkpoint.every)
            traced = self.traces.traced(step)
            # A step that is followed by other work is measured too: that drains the device, and so what is left out of
            # the stopwatch is that work alone, with no step still running in it.
            other_work = evaluating or saving or traced or self.traces.due_before(step + 1)
            if step == first or other_work or last or _due(step, self.train.log_every):
                row = self.meter.row(progress, rate, result, self.traces.slowed(step)) | self.store.take_metrics()
                if traced:  # at once: whatever came first would be in the trace
                    with self.meter.apart(Phase.profile):
                        self.traces.end(step, self.meter.waited_s)
                if evaluating:
                    with self.meter.apart(Phase.eval):
                        row["eval/loss"] = self.evaluate()
                if self.report:
                    self.report.log(row)
            if saving:
                with self.meter.apart(Phase.ckpt_save):
                    self.store.save(self.step.engine, progress, self.checkpoint.keep)
        with self.meter.apart(Phase.ckpt_save) if self.store.under_way else nullcontext():
            self.store.finish()

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
