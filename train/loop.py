"""The training loop: steps, and what happens between them."""

from dataclasses import dataclass

import torch

from models.config import ModelConfig
from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator
from train.checkpoint import CheckpointStore, Progress
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.data.loader import BatchLoader
from train.data.source import SampleStream
from train.evaluate import evaluate
from train.metrics.routing import routing_row
from train.metrics.step_time import StepTime
from train.metrics.throughput import Throughput, peak_memory_gib
from train.optimizer import learning_rate
from train.report import Report
from train.step import OptimizerStep, StepResult


@dataclass
class Trainer:
    """Drives one job on one rank. All ranks run the same calls in the same order."""

    train: TrainConfig
    optim: OptimConfig
    checkpoint: CheckpointConfig
    model: ModelConfig
    step: OptimizerStep
    eval_micro_batch_size: int
    """Sequences per evaluation forward on each rank."""
    loader: BatchLoader
    heldout: SampleStream
    store: CheckpointStore
    throughput: Throughput
    step_time: StepTime
    report: Report | None
    """Where rank 0 writes; None on the other ranks."""
    comm: Communicator
    device: torch.device

    def run(self, progress: Progress) -> None:
        """Train from `progress` to the last step."""
        first = progress.step + 1
        clock = self.comm.clock
        clock.end_window()  # what was before is the start's
        for step in range(first, self.train.steps + 1):
            clock.enter(Phase.data_wait)
            tokens_MBS = next(self.loader)
            rate = learning_rate(self.optim, step, self.train.steps)
            result = self.step(tokens_MBS, rate)
            clock.enter(Phase.log)
            n_tokens = self.train.global_batch_size * (tokens_MBS.shape[-1] - 1)
            progress = Progress(step, progress.tokens + n_tokens)
            self.throughput.count(n_tokens)

            last = step == self.train.steps
            evaluating = self.train.eval_sequences > 0 and (last or _due(step, self.train.eval_every))
            saving = (last and self.checkpoint.at_end) or _due(step, self.checkpoint.every)
            # A step that is followed by other work is measured too: that drains the device, and so what is left out of
            # the stopwatch is that work alone, with no step still running in it.
            if step == first or evaluating or saving or last or _due(step, self.train.log_every):
                row = self.measure(progress, rate, result)
                if evaluating:
                    with self.throughput.paused(), clock.during(Phase.eval):
                        row["eval/loss"] = self.evaluate()
                if self.report:
                    self.report.log(row)
            if saving:
                with self.throughput.paused(), clock.during(Phase.ckpt_save):
                    self.store.save(self.step.engine, progress, self.checkpoint.keep)

    def measure(self, progress: Progress, rate: float, result: StepResult) -> dict[str, float]:
        """The step's row of metrics. Reading the loss waits for the device: here a window of steps ends."""
        row: dict[str, float] = {
            "train/step": progress.step,
            "train/tokens": progress.tokens,
            "train/loss": result.loss.item(),
            "train/grad_norm": result.grad_norm.item(),
            "train/lr": rate,
        }
        row |= self.throughput.end_window()
        if window := self.comm.clock.end_window():
            row |= self.step_time.row(window)
        if routed := routing_row(result.routing, self.model.moe, self.step.engine.placement):
            row |= routed
            if self.model.moe.has_router_loss:
                row["train/router_loss"] = result.router_loss.item()
        row["mem/peak_gib"] = peak_memory_gib(self.device)
        return row

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
