"""One optimizer step over a global batch.

M micro-batches, B sequences, S tokens (one more than the context), L MoE layers, N numbers of each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.routing_totals import RoutingTotals
from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.engine import Engine
from parallel.pipeline.loss_scale import LossScale
from train.batch import BatchMaker
from train.faults.injector import Injector


@dataclass(frozen=True)
class StepResult:
    """Of one optimizer step, still on the device: nothing here has waited for it."""

    loss: Tensor
    """Mean cross-entropy of the global batch, nats per target."""
    router_loss: Tensor
    """What the routers added to the objective, per token."""
    grad_norm: Tensor
    """Global 2-norm before clipping."""
    left_out: Tensor
    """Whether the step was not finite, and so moved nothing: a bool scalar, the same on every rank."""
    routing: RoutingTotals
    """Over the global batch."""
    asked: Tensor
    """Sum over ranks of what each asks (OptimizerStep.asks)."""


@dataclass(frozen=True)
class OptimizerStep:
    """Forward, backward, clip and update, in every layout. All ranks call it together."""

    engine: Engine
    comm: Communicator
    make_batch: BatchMaker
    global_batch_size: int
    """Sequences over all ranks."""
    clip_norm: float | None
    """Largest global gradient norm; None only measures."""
    before_update: Callable[[Engine], None] | None = None
    """Sees the engine while its gradients are the global ones, not yet clipped."""
    asks: Callable[[], int] | None = None
    """What this rank asks of all, a number to be summed (train/faults/stop.py)."""
    injector: Injector | None = None
    """Spoils losses on purpose."""

    def __call__(self, tokens_MBS: Tensor, rate: float) -> StepResult:
        """Train on this rank's micro-batches; gradients are those of the global batch's mean loss."""
        clock = self.comm.clock
        clock.enter(Phase.compute_fwd)
        # Known before backward, so that every reduction is a plain sum.
        n_tokens = self.global_batch_size * (tokens_MBS.shape[-1] - 1)
        n_targets = self._count_targets(tokens_MBS, n_tokens)
        batches = [self.make_batch(tokens_BS) for tokens_BS in tokens_MBS]
        spoilt = self.injector.loss_factor() if self.injector else 1
        self.engine.set_rate(rate)
        losses = self.engine.forward_backward(batches, LossScale(n_targets * spoilt, n_tokens * spoilt))
        clock.enter(Phase.compute_opt)
        if self.before_update:
            self.before_update(self.engine)
        routing_LN = self.engine.take_routing().pack()
        # One collective for all that ranks tell each other; before the update, which a loss may forbid.
        asked = losses.new_full((1,), self.asks() if self.asks else 0)  # as an argument: no copy that waits
        totals = torch.cat((losses, asked, routing_LN.flatten()))
        self.comm.all_reduce(totals, None, CommKind.control)
        routing = RoutingTotals.unpack(totals[3:].view_as(routing_LN))
        largest_norm = self.clip_norm if self.clip_norm is not None else float("inf")
        grad_norm, left_out = self.engine.update(largest_norm, totals[:2])
        self.engine.balance_experts(routing.chosen_LE.masked_fill(left_out, 0))
        return StepResult(totals[0], totals[1], grad_norm, left_out, routing, totals[2])

    def _count_targets(self, tokens_MBS: Tensor, n_tokens: int) -> Tensor | int:
        """Targets of the global batch: all its tokens, unless some of them begin a document."""
        if self.make_batch.separator is None:
            return n_tokens
        n_targets = self.make_batch.count_targets(tokens_MBS)
        return self.comm.all_reduce(n_targets, self.engine.data.group, CommKind.control).clamp(min=1)
