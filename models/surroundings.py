"""What a network needs from outside its device, with a default for one that has nobody around it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from models.config import ModelConfig
from models.dispatcher import Dispatcher, LocalDispatcher
from models.placement import ExpertPlacement
from models.router_loss import over_one_rank
from models.rows import build_rows
from models.whole_sequence import WholeSequence


@dataclass(frozen=True)
class Surroundings:
    """Who moves tokens to experts, which of them live here, and how counts are added up over ranks."""

    dispatcher: Dispatcher
    """Serves all MoE layers."""
    hide_behind_shared: bool = False
    """Whether shared experts are computed while rows travel."""
    ep_rank: int = 0
    """Whose slots of the dispatcher's placement live here."""
    sum_over_data_ranks: Callable[[Tensor], Tensor] = over_one_rank
    """Adds a tensor up over the ranks that see other tokens of the same micro-batch."""
    sequence: WholeSequence = field(default_factory=WholeSequence)
    """What routers ask of the ranks that have the rest of each sequence."""
    hide_behind_others: bool = False
    """Whether whoever drives the parts of a block has something else to do while rows travel between these."""
    whole_backward: bool = True
    """Whether weights' gradients are made together with those of inputs; some schedules of pipelines split them."""

    @classmethod
    def alone(cls, model: ModelConfig) -> "Surroundings":
        """All experts here, all tokens here."""
        placement = ExpertPlacement.contiguous(model.moe.n_routed)
        return cls(LocalDispatcher(placement, rows=build_rows(model.row_backend)))
