"""The training loop: one optimizer step, and what happens between steps.

M micro-batches, B sequences, S tokens, L MoE layers, E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.loss import cross_entropy_sum
from parallel.comm import CommKind, Communicator
from parallel.gradient_norm import clip_gradients
from parallel.parallelize import ParallelModel
from train.checkpoint import CheckpointStore, Progress
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.data.loader import BatchLoader
from train.data.source import TokenSource
from train.evaluate import evaluate
from train.metrics.throughput import Throughput, peak_memory_gib
from train.optimizer import learning_rate, set_learning_rate
from train.report import Report


@dataclass(frozen=True)
class StepResult:
    """Of one optimizer step, still on the device: nothing here has waited for it."""

    loss: Tensor
    """Mean cross-entropy of the global batch, nats per token."""
    grad_norm: Tensor
    """Global 2-norm before clipping."""
    counts_LE: Tensor
    """Tokens per logical expert over the global batch, float64."""


@dataclass
class Trainer:
    """Drives one job on one rank. All ranks run the same calls in the same order."""

    train: TrainConfig
    optim: OptimConfig
    checkpoint: CheckpointConfig
    parallel: ParallelModel
    optimizer: Optimizer
    loader: BatchLoader
    heldout: TokenSource
    store: CheckpointStore
    throughput: Throughput
    report: Report | None
    """Where rank 0 writes; None on the other ranks."""
    comm: Communicator
    device: torch.device

    def run(self, progress: Progress) -> Progress:
        """Train from `progress` to the last step."""
        while progress.step < self.train.steps:
            tokens_MBS = next(self.loader)
            rate = learning_rate(self.optim, progress.step + 1, self.train.steps)
            result = self.step(tokens_MBS, rate)
            n_tokens = self.train.global_batch_size * (tokens_MBS.shape[-1] - 1)
            progress = Progress(progress.step + 1, progress.tokens + n_tokens)
            self.throughput.count(n_tokens)

            last = progress.step == self.train.steps
            row: dict[str, float] = {}
            if last or progress.step == 1 or progress.step % self.train.log_every == 0:
                row = self.measure(progress, rate, result)
            if self.train.eval_sequences and (last or _due(progress.step, self.train.eval_every)):
                with self.throughput.paused():
                    row = {"train/step": progress.step} | row | {"eval/loss": self.evaluate()}
            if row and self.report:
                self.report.log(row)
            if (last and self.checkpoint.at_end) or _due(progress.step, self.checkpoint.every):
                with self.throughput.paused():
                    self.store.save(self.parallel.model, self.optimizer, progress, self.checkpoint.keep)
        return progress

    def step(self, tokens_MBS: Tensor, rate: float) -> StepResult:
        """One optimizer step over this rank's micro-batches; gradients are those of the global batch's mean loss."""
        model, gradients = self.parallel.model, self.parallel.gradients
        n_tokens = self.train.global_batch_size * (tokens_MBS.shape[-1] - 1)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        gradients.begin_step()
        for index, tokens_BS in enumerate(tokens_MBS):
            gradients.begin_micro_batch(last=index == len(tokens_MBS) - 1)
            share = cross_entropy_sum(model(tokens_BS[:, :-1]), tokens_BS[:, 1:]) / n_tokens
            share.backward()
            loss += share.detach()
        gradients.finish_step()

        max_norm = self.optim.clip_norm if self.optim.clip_norm is not None else float("inf")
        grad_norm = clip_gradients(model.parameters(), max_norm, self.comm)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()

        counts_LE = model.take_expert_counts()
        # One collective for all that ranks tell each other; float64 holds counts exactly up to 2^53.
        totals = torch.cat((loss.view(1), counts_LE.flatten().to(loss)))
        self.comm.all_reduce(totals, self.parallel.dp_group, CommKind.control)
        counts_LE = totals[1:].view_as(counts_LE)
        model.balance_experts(counts_LE)
        return StepResult(totals[0], grad_norm, counts_LE)

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
        if result.counts_LE.numel():
            load_LE = result.counts_LE
            row["moe/load_max_over_mean"] = (load_LE.amax(-1) / load_LE.mean(-1)).mean().item()
        row["mem/peak_gib"] = peak_memory_gib(self.device)
        return row

    def evaluate(self) -> float:
        """Held-out loss, nats per token."""
        micro_batch = self.train.eval_micro_batch(self.parallel.degrees.dp)
        sequences = self.train.eval_sequences
        return evaluate(self.parallel, self.heldout, sequences, micro_batch, self.comm, self.device)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
