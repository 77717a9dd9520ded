"""Our own engine: every layout of parallel/parallelize.py, by the one executor."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from models.initialise import Shard
from models.placement import ExpertPlacement
from models.routing_totals import RoutingTotals
from models.transformer import Batch
from parallel.comm import Communicator
from parallel.cuda_graph import GraphedSteps
from parallel.early_update import EarlyUpdates
from parallel.engine import OptimizerMaker
from parallel.gradient_norm import clip_coefficient, global_norm, require_gradients
from parallel.gradient_sync import Remade
from parallel.halves import Halves
from parallel.logical_state import MOMENTS, model_state, named_state
from parallel.mesh import Axis
from parallel.owned import masters
from parallel.parallelize import ParallelModel
from parallel.pipeline.executor import Executor
from parallel.pipeline.loss_scale import LossScale
from parallel.pipeline.schedules import forward_schedule
from parallel.update import OnePass, Update, not_finite, step_unless


class NativeEngine:
    """See Engine."""

    def __init__(
        self, parallel: ParallelModel, make_optimizer: OptimizerMaker, comm: Communicator, dtype: torch.dtype
    ) -> None:
        """`dtype` is that of activations."""
        self._parallel, self._comm = parallel, comm
        early = parallel.overlap.optimizer
        groups = parallel.gradients.reduced_together() if early else [masters(parallel.owned)]
        self._optimizers = [make_optimizer(group) for group in groups]
        one_pass = [optimizer for optimizer in self._optimizers if isinstance(optimizer, OnePass)]
        copies = parallel.gradients.copies()
        self._halves = Halves(copies if any(optimizer.halves for optimizer in one_pass) else {})
        """Whole from `weights` on, until something else than reading and filling is done."""
        for optimizer in one_pass:
            optimizer.round_into(copies, self._halves.lows)
        self._copies_are_made = len(one_pass) == len(self._optimizers)
        self._early = EarlyUpdates(self._optimizers, comm, groups[0][0].device) if early else None
        if self._early:
            parallel.gradients.update_early(self._early)
        self._executor = Executor(
            parallel.stages,
            parallel.schedule,
            parallel.pipeline,
            comm,
            parallel.gradients,
            parallel.layout.degrees.tp,
            dtype,
            parallel.overlap.pipeline_p2p,
            parallel.overlap.forward_backward,
        )
        self._graphed: GraphedSteps | None = None
        if parallel.cuda_graph:
            assert isinstance(parallel.gradients, Remade), "parallel/check_cuda_graph.py refuses the others"
            self._graphed = GraphedSteps(self._executor, parallel.gradients, comm.clock, groups[0][0].device)

    @property
    def data(self) -> Axis:
        """See Engine."""
        return self._parallel.data

    @property
    def counts_data(self) -> bool:
        """See Engine."""
        return self._parallel.counts_data

    @property
    def placement(self) -> ExpertPlacement:
        """See Engine."""
        return next(iter(self._parallel.stages.values())).placement

    @property
    def unseen(self) -> None:
        """See Engine: all are ours, or FSDP2's."""

    def set_rate(self, rate: float) -> None:
        """See Engine."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def forward_backward(self, batches: Sequence[Batch], scale: LossScale) -> Tensor:
        """See Engine."""
        self._parallel.gradients.begin_step()
        self._halves.part()  # in memory that gradients had
        losses = (self._graphed or self._executor).forward_backward(batches, scale)
        self._parallel.gradients.finish_step()
        if not self._parallel.counts_loss:
            losses[0].zero_()  # assigned, the number would be copied, which waits for the GPU
        return losses

    def update(self, max_norm: float, losses: Tensor) -> Update:
        """See Engine."""
        parallel = self._parallel
        world = parallel.layout.degrees.world
        norm = global_norm(parallel.owned, world, parallel.split_anywhere, self._comm, parallel.norms_of)
        left_out = not_finite(norm, losses)
        self._halves.part()  # before_update may have read weights
        if not self._early:
            step_unless(left_out, self._optimizers[0], clip_coefficient(norm, max_norm))
        parallel.gradients.publish(self._copies_are_made)
        for master in self._halves.lows:  # done with: whole masters can have their memory
            master.grad = None
        if self._graphed and self._graphed.wrote:  # what a save will need, beside a pool: who has it not, ends now
            self._halves.join()
        return Update(norm, left_out)

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

    def take_routing(self) -> RoutingTotals:
        """See Engine."""
        packed = [stage.take_routing().pack() for stage in self._parallel.stages.values()]
        return RoutingTotals.unpack(torch.stack(packed).sum(0))

    def balance_experts(self, chosen_LE: Tensor) -> None:
        """See Engine."""
        for stage in self._parallel.stages.values():
            stage.balance_experts(chosen_LE)

    def weights(self) -> dict[str, Shard]:
        """See Engine; the masters' and buffers' own storage."""
        self._halves.join()
        return model_state(self._parallel.stages.values(), self._parallel.shard_of)

    def gradients(self) -> dict[str, Shard]:
        """See Engine; the masters' own gradients."""
        require_gradients(self._parallel.owned)

        def gradient(name: str, _: nn.Parameter) -> Shard:
            owned = self._parallel.owned[name]
            assert owned.master.grad is not None
            return Shard(owned.master.grad, owned.shard.global_shape, owned.shard.offset)

        return named_state(self._parallel.stages.values(), "gradient", gradient)

    def moments(self) -> dict[str, Shard]:
        """See Engine; the optimizer's own storage."""
        state: dict[str, Shard] = {}
        of_master = {master: kept for optimizer in self._optimizers for master, kept in optimizer.state.items()}
        for moment in MOMENTS:

            def local(name: str, _: nn.Parameter, moment: str = moment) -> Shard:
                owned = self._parallel.owned[name]
                storage = of_master[owned.master][moment]
                return Shard(storage, owned.shard.global_shape, owned.shard.offset)

            state |= named_state(self._parallel.stages.values(), f"optimizer.{moment}", local)
        return state

    def take_state(self, filled: Mapping[str, Shard], updates_done: int) -> None:
        """See Engine. The storage is ours already."""
        self._halves.join()
        self._parallel.gradients.publish(copies_are_made=False)
        self._halves.part()
        for optimizer in self._optimizers:
            for moments in optimizer.state.values():
                moments["step"].fill_(updates_done)
