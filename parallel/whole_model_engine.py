"""What the engines of other libraries have in common: data parallelism alone, over one whole model.

Every rank computes with the whole network on its own data, as one process would; what the library does to keep the
ranks' weights equal is its own. Its collectives are its own too: they pass by Communicator, which counts none of them
and times none. Ours are those of the batch-level balancing loss, of checkpoints and of the loop.

The libraries average gradients over ranks. The loss is already divided by the global numbers of targets and tokens, so
it is multiplied by the number of ranks first: the average is then the sum that it should be.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from models.config import ModelConfig
from models.dispatcher import LocalDispatcher
from models.placement import ExpertPlacement
from models.routing_totals import RoutingTotals
from models.rows import build_rows
from models.surroundings import Surroundings
from models.transformer import Batch, LossTerms, Transformer
from parallel.clock.phase_clock import Phase
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.config import PrecisionConfig, Recompute
from parallel.mesh import Axis
from parallel.pipeline.loss_scale import LossScale
from parallel.recompute import recompute_parts
from parallel.world import World


class WholeModelEngine(ABC):
    """The half of Engine that knows nothing of the library."""

    def __init__(self, model: Transformer, world: World, comm: Communicator, n_micro_batches: int) -> None:
        """`model` as it was before the library took it: whose names and counts are read."""
        assert dist.group.WORLD is not None
        self._comm = comm
        self._model, self._n_micro_batches = model, n_micro_batches
        self._data = Axis(dist.group.WORLD, world.rank, world.size)

    @property
    def data(self) -> Axis:
        """See Engine."""
        return self._data

    @property
    def counts_data(self) -> bool:
        """See Engine."""
        return True

    @property
    def placement(self) -> ExpertPlacement:
        """See Engine."""
        return self._model.placement

    def forward_backward(self, batches: Sequence[Batch], scale: LossScale) -> Tensor:
        """See Engine.

        Raises:
            RuntimeError: if a parameter got no gradient.
        """
        if len(batches) != self._n_micro_batches:
            raise ValueError(f"{len(batches)} micro-batches for an engine of {self._n_micro_batches}")
        losses = torch.zeros(2, dtype=torch.float64, device=batches[0].tokens_BS.device)
        self._begin_step()
        for index, batch in enumerate(batches):
            self._forward_backward_one(batch, scale, losses, last=index == len(batches) - 1)
        if missing := self._without_gradient():
            raise RuntimeError(f"no gradient for {', '.join(missing)}")
        return losses

    @torch.no_grad()
    def cross_entropy_sum(self, batches: Sequence[Batch]) -> Tensor:
        """See Engine."""
        self._model.eval()
        total = torch.zeros((), dtype=torch.float64, device=batches[0].tokens_BS.device)
        for batch in batches:
            total += self._forward(batch).cross_entropy_sum.double()
        self._model.train()
        return total

    def take_routing(self) -> RoutingTotals:
        """See Engine."""
        return self._model.take_routing()

    def balance_experts(self, chosen_LE: Tensor) -> None:
        """See Engine."""
        self._model.balance_experts(chosen_LE)

    def _loss(self, batch: Batch, scale: LossScale, losses: Tensor) -> Tensor:
        """Forward; adds this rank's shares to `losses` and gives what to go backward from."""
        self._comm.clock.enter(Phase.compute_fwd)
        terms = self._forward(batch)
        share, router_share = terms.cross_entropy_sum / scale.n_targets, terms.router_loss_sum / scale.n_tokens
        losses += torch.stack((share.detach().double(), router_share.detach().double()))
        self._comm.clock.enter(Phase.compute_bwd)
        return (share + router_share) * self._data.size

    @abstractmethod
    def _forward(self, batch: Batch) -> LossTerms:
        """Through the library's wrapper."""

    @abstractmethod
    def _begin_step(self) -> None:
        """Before the first micro-batch."""

    @abstractmethod
    def _forward_backward_one(self, batch: Batch, scale: LossScale, losses: Tensor, last: bool) -> None:
        """`_loss` of a micro-batch and its backward; after the `last` one gradients are the global ones."""

    @abstractmethod
    def _without_gradient(self) -> list[str]:
        """Names of the parameters that backward has not reached in this step."""


def build_whole_model(
    config: ModelConfig, precision: PrecisionConfig, resident: torch.dtype, recompute: Recompute, comm: Communicator
) -> Transformer:
    """The network on the meta device, its parameters in `resident`; `comm` sums batch-level loads over all ranks."""

    def sum_over_data_ranks(counts: Tensor) -> Tensor:
        return comm.all_reduce(counts.clone(), None, CommKind.control)

    placement = ExpertPlacement.contiguous(config.moe.n_routed)
    experts = LocalDispatcher(placement, rows=build_rows(config.row_backend))
    with torch.device("meta"):
        model = Transformer(
            config, precision.compute.torch, Surroundings(experts, sum_over_data_ranks=sum_over_data_ranks)
        )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(resident)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(precision.parameters.torch)
    recompute_parts(model, recompute, shared_in_halves=False)
    return model
