"""What a training loop drives, whoever lays the model over ranks."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from models.transformer import Batch, ExpertCounts
from parallel.comm import Communicator
from parallel.gradient_norm import clip_gradients
from parallel.parallelize import ParallelModel
from parallel.pipeline.executor import Executor, LossScale
from parallel.pipeline.schedules import forward_schedule


class Engine(Protocol):
    """Forward and backward of a step's micro-batches, the update, and the routers' balance."""

    def forward_backward(self, batches: Sequence[Batch], scale: LossScale) -> Tensor:
        """[2], float64: what this rank adds to the mean cross-entropy and to the routers' loss of the global batch."""

    def update(self, rate: float, max_norm: float) -> Tensor:
        """Clip (infinity: only measure) and step at `rate`; the global gradient norm before clipping, float64."""

    def cross_entropy_sum(self, batches: Sequence[Batch]) -> Tensor:
        """What this rank adds to Σ of the losses of all targets, float64. No gradients."""

    def take_expert_counts(self) -> ExpertCounts:
        """What this rank adds to the counts of all MoE layers since the last call."""

    def balance_experts(self, chosen_LE: Tensor) -> None:
        """Move the routers' biases by the counts of the global batch."""


class NativeEngine:
    """Ours: every layout of parallel/parallelize.py, by the executor."""

    def __init__(self, parallel: ParallelModel, optimizer: Optimizer, comm: Communicator, dtype: torch.dtype) -> None:
        """`optimizer` is over the masters of `parallel.owned`; `dtype` is that of activations."""
        self._parallel, self._optimizer, self._comm = parallel, optimizer, comm
        self._executor = Executor(
            parallel.stages,
            parallel.schedule,
            parallel.pipeline,
            comm,
            parallel.gradients,
            parallel.layout.degrees.tp,
            dtype,
        )

    def forward_backward(self, batches: Sequence[Batch], scale: LossScale) -> Tensor:
        """See Engine."""
        self._parallel.gradients.begin_step()
        losses = self._executor.forward_backward(batches, scale)
        self._parallel.gradients.finish_step()
        if not self._parallel.counts_loss:
            losses[0] = 0
        return losses

    def update(self, rate: float, max_norm: float) -> Tensor:
        """See Engine."""
        parallel = self._parallel
        world = parallel.layout.degrees.world
        norm = clip_gradients(parallel.owned, max_norm, world, parallel.split_anywhere, self._comm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        parallel.gradients.publish()
        return norm

    def cross_entropy_sum(self, batches: Sequence[Batch]) -> Tensor:
        """See Engine. Parameters are resharded afterwards: no backward comes that would do it."""
        stages = self._parallel.stages.values()
        for stage in stages:
            stage.eval()
        forward = forward_schedule(self._parallel.schedule.rank_of_stage[0], len(batches))
        total = self._executor.cross_entropy_sum(batches, forward)
        for stage in stages:
            stage.train()
            for module in stage.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return total if self._parallel.counts_loss else torch.zeros_like(total)

    def take_expert_counts(self) -> ExpertCounts:
        """See Engine."""
        counts = [stage.take_expert_counts() for stage in self._parallel.stages.values()]
        return ExpertCounts(*(torch.stack(tables).sum(0) for tables in zip(*counts, strict=True)))

    def balance_experts(self, chosen_LE: Tensor) -> None:
        """See Engine."""
        for stage in self._parallel.stages.values():
            stage.balance_experts(chosen_LE)
