"""What a training loop drives, whoever lays the model over ranks.

    native       all of parallel/parallelize.py                              parallel/native_engine.py
    accelerate   Hugging Face Accelerate: DDP, FSDP2                         parallel/accelerate_engine.py
    deepspeed    DeepSpeed: ZeRO-1, 2, 3                                     parallel/deepspeed_engine.py

All of an engine's state is seen by logical name (parallel/logical_state.py), so that any engine's checkpoint is any
other's, and the same comparison proves all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from models.initialise import Shard
from models.placement import ExpertPlacement
from models.routing_totals import RoutingTotals
from models.transformer import Batch
from parallel.mesh import Axis
from parallel.pipeline.loss_scale import LossScale
from parallel.update import Update

OptimizerMaker = Callable[[Sequence[nn.Parameter]], Optimizer]
"""Makes AdamW over the parameters that an engine gives it, moments allocated."""


class Engine(Protocol):
    """Forward and backward of a step's micro-batches, the update, and the routers' balance."""

    @property
    def data(self) -> Axis:
        """The ranks that see different data, and are equal to this one in all else."""

    @property
    def counts_data(self) -> bool:
        """Whether this rank, of those that see the same data, is the one that counts it."""

    @property
    def placement(self) -> ExpertPlacement:
        """On which expert-parallel rank each expert lives."""

    @property
    def unseen(self) -> str | None:
        """Which waits for communication no clock of ours sees, and which phase they are counted in; None: all are."""

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next update, which may begin within forward_backward (overlap.optimizer)."""

    def forward_backward(self, batches: Sequence[Batch], scale: LossScale) -> Tensor:
        """[2], float64: what this rank adds to the mean cross-entropy and to the routers' loss of the global batch."""

    def update(self, max_norm: float, losses: Tensor) -> Update:
        """Clip (infinity: only measure) and step; leave it out, so that neither weights nor moments move, if the global
        gradient norm or one of the global batch's `losses` is not finite. With overlap.optimizer it is done, and the
        job is to end there."""

    def cross_entropy_sum(self, batches: Sequence[Batch]) -> Tensor:
        """What this rank adds to Σ of the losses of all targets, float64. No gradients."""

    def take_routing(self) -> RoutingTotals:
        """What this rank adds to the totals of all MoE layers since the last call."""

    def balance_experts(self, chosen_LE: Tensor) -> None:
        """Move the routers' biases by the counts of the global batch: where all are equal, nothing."""

    def weights(self) -> dict[str, Shard]:
        """Parameters and buffers as `model.*`: what this rank answers for, to be read or filled before anything else is
        called than `moments`, `cross_entropy_sum` and `take_state`, which comes last: an engine may have no such
        tensors while it trains. Called by all ranks together, as are the next three."""

    def gradients(self) -> dict[str, Shard]:
        """The global gradient as `gradient.*`, between forward_backward and update."""

    def moments(self) -> dict[str, Shard]:
        """AdamW's moments as `optimizer.exp_avg.*` and `optimizer.exp_avg_sq.*`."""

    def take_state(self, filled: Mapping[str, Shard], updates_done: int) -> None:
        """Go on from tensors that `weights` (and `moments`, unless the job is new) gave and that were filled since, as
        after `updates_done` updates; a step that was left out is none."""
