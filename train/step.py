"""One optimizer step over a global batch.

M micro-batches, B sequences, S tokens (one more than the context), L MoE layers, E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.transformer import ExpertCounts
from parallel.comm import CommKind, Communicator
from parallel.gradient_norm import clip_gradients
from parallel.parallelize import ParallelModel
from train.batch import BatchMaker
from train.optimizer import set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """Of one optimizer step, still on the device: nothing here has waited for it."""

    loss: Tensor
    """Mean cross-entropy of the global batch, nats per target."""
    router_loss: Tensor
    """What the routers added to the objective, per token."""
    grad_norm: Tensor
    """Global 2-norm before clipping."""
    counts: ExpertCounts
    """(token, expert) pairs over the global batch, float64."""


@dataclass(frozen=True)
class OptimizerStep:
    """Forward, backward, clip and update, in every layout. All ranks call it together."""

    parallel: ParallelModel
    optimizer: Optimizer
    comm: Communicator
    make_batch: BatchMaker
    global_batch_size: int
    """Sequences over all ranks."""
    clip_norm: float | None
    """Largest global gradient norm; None only measures."""

    def __call__(self, tokens_MBS: Tensor, rate: float) -> StepResult:
        """Train on this rank's micro-batches; gradients are those of the global batch's mean loss."""
        model, gradients = self.parallel.model, self.parallel.gradients
        # Known before backward, so that every reduction is a plain sum.
        n_tokens = self.global_batch_size * (tokens_MBS.shape[-1] - 1)
        n_targets = self._count_targets(tokens_MBS, n_tokens)
        losses = torch.zeros(2, dtype=torch.float64, device=tokens_MBS.device)
        gradients.begin_step()
        for index, tokens_BS in enumerate(tokens_MBS):
            gradients.begin_micro_batch(last=index == len(tokens_MBS) - 1)
            terms = model(*self.make_batch(tokens_BS))
            shares = (terms.cross_entropy_sum / n_targets, terms.router_loss_sum / n_tokens)
            (shares[0] + shares[1]).backward()
            losses += torch.stack([share.detach().double() for share in shares])
        gradients.finish_step()

        max_norm = self.clip_norm if self.clip_norm is not None else float("inf")
        grad_norm = clip_gradients(self.parallel.parameters, max_norm, self.comm)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()

        counts_2LE = torch.stack(model.take_expert_counts()).to(losses)
        # One collective for all that ranks tell each other; float64 holds counts exactly up to 2^53.
        totals = torch.cat((losses, counts_2LE.flatten()))
        self.comm.all_reduce(totals, self.parallel.dp_group, CommKind.control)
        counts = ExpertCounts(*totals[2:].view_as(counts_2LE))
        model.balance_experts(counts.chosen_LE)
        return StepResult(totals[0], totals[1], grad_norm, counts)

    def _count_targets(self, tokens_MBS: Tensor, n_tokens: int) -> Tensor | int:
        """Targets of the global batch: all its tokens, unless some of them begin a document."""
        if self.make_batch.separator is None:
            return n_tokens
        n_targets = self.make_batch.count_targets(tokens_MBS)
        return self.comm.all_reduce(n_targets, self.parallel.dp_group, CommKind.control).clamp(min=1)
