"""One optimizer step over a global batch.

M micro-batches, B sequences, S tokens (one more than the context), L MoE layers, E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.loss import cross_entropy_sum
from parallel.comm import CommKind, Communicator
from parallel.gradient_norm import clip_gradients
from parallel.parallelize import ParallelModel
from train.optimizer import set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """Of one optimizer step, still on the device: nothing here has waited for it."""

    loss: Tensor
    """Mean cross-entropy of the global batch, nats per token."""
    grad_norm: Tensor
    """Global 2-norm before clipping."""
    counts_LE: Tensor
    """Tokens per logical expert over the global batch, float64."""


@dataclass(frozen=True)
class OptimizerStep:
    """Forward, backward, clip and update, in every layout. All ranks call it together."""

    parallel: ParallelModel
    optimizer: Optimizer
    comm: Communicator
    global_batch_size: int
    """Sequences over all ranks."""
    clip_norm: float | None
    """Largest global gradient norm; None only measures."""

    def __call__(self, tokens_MBS: Tensor, rate: float) -> StepResult:
        """Train on this rank's micro-batches; gradients are those of the global batch's mean loss."""
        model, gradients = self.parallel.model, self.parallel.gradients
        # Known before backward, so that every reduction is a plain sum.
        n_tokens = self.global_batch_size * (tokens_MBS.shape[-1] - 1)
        loss = torch.zeros((), dtype=torch.float64, device=tokens_MBS.device)
        gradients.begin_step()
        for index, tokens_BS in enumerate(tokens_MBS):
            gradients.begin_micro_batch(last=index == len(tokens_MBS) - 1)
            share = cross_entropy_sum(model(tokens_BS[:, :-1]), tokens_BS[:, 1:]) / n_tokens
            share.backward()
            loss += share.detach()
        gradients.finish_step()

        max_norm = self.clip_norm if self.clip_norm is not None else float("inf")
        grad_norm = clip_gradients(self.parallel.parameters, max_norm, self.comm)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()

        counts_LE = model.take_expert_counts()
        # One collective for all that ranks tell each other; float64 holds counts exactly up to 2^53.
        totals = torch.cat((loss.view(1), counts_LE.flatten().to(loss)))
        self.comm.all_reduce(totals, self.parallel.dp_group, CommKind.control)
        counts_LE = totals[1:].view_as(counts_LE)
        model.balance_experts(counts_LE)
        return StepResult(totals[0], grad_norm, counts_LE)
