"""Which placement and dispatcher a layout has, and what it asks of a model."""

from enum import Enum

from models.config import ConfigError, MoEConfig
from models.dispatcher import Dispatcher, LocalDispatcher
from models.placement import ExpertPlacement
from models.rows import Rows
from parallel.collective_functions import Among
from parallel.expert_parallel.all_to_all import AllToAllDispatcher
from parallel.expert_parallel.gathered import GatheredDispatcher


class DispatcherName(Enum):
    all_to_all = "all_to_all"
    all_gather = "all_gather"
    symmetric_memory = "symmetric_memory"


class RowRoom(Enum):
    """How many rows experts are given, where some pairs have none: those of others' experts, and dropped ones."""

    exact = "exact"
    static = "static"


class PlacementName(Enum):
    contiguous = "contiguous"
    round_robin = "round_robin"


def build_placement(name: PlacementName, n_experts: int, n_ranks: int) -> ExpertPlacement:
    """On which of `n_ranks` expert-parallel ranks each expert lives, and in which slot."""
    if name is PlacementName.round_robin:
        return ExpertPlacement.round_robin(n_experts, n_ranks)
    return ExpertPlacement.contiguous(n_experts, n_ranks)


def build_dispatcher(
    name: DispatcherName,
    placement: ExpertPlacement,
    rank: int,
    among_ep: Among,
    among_etp: Among | None,
    n_parts: int = 1,
    rows: Rows | None = None,
    room: RowRoom = RowRoom.exact,
) -> Dispatcher:
    """The dispatcher of expert-parallel `rank`; `among_etp` are the ranks that split experts by width, if any do;
    `n_parts` in which rows travel each to its own; `rows`: how tokens become rows, of which there are as
    many as `room` says."""
    dispatcher: Dispatcher
    room_for_all = room is RowRoom.static
    if len(placement.slots_of_rank) == 1:
        dispatcher = LocalDispatcher(placement, rows=rows, room_for_all=room_for_all)
    elif name is DispatcherName.all_to_all:
        dispatcher = AllToAllDispatcher(placement, rank, among_ep, n_parts, rows)
    elif name is DispatcherName.all_gather:
        dispatcher = GatheredDispatcher(LocalDispatcher(placement, rank, rows, room_for_all), among_ep)
    else:
        # With torch's own parts behind them, which no config needs: 0.8 s at the start of every command.
        from parallel.expert_parallel.taken import TakenWays
        from parallel.peer_memory import PeerMemory

        memory = PeerMemory(among_ep.group)
        into_it = (rows or Rows()).summing_into(memory.place_for_sums)
        local = LocalDispatcher(placement, rank, into_it, room_for_all)
        dispatcher = GatheredDispatcher(local, among_ep, TakenWays(placement, among_ep, memory))
    return dispatcher if among_etp is None else GatheredDispatcher(dispatcher, among_etp)


def check_expert_parallel(moe: MoEConfig, ep: int, etp: int) -> None:
    """Refuse experts that do not divide.

    Raises:
        ConfigError: naming the number to change.
    """
    if moe.n_routed % ep:
        raise ConfigError(f"strategy.ep={ep} does not divide model.moe.n_routed={moe.n_routed}: set it to a divisor")
    if moe.expert_dim % etp:
        raise ConfigError(
            f"strategy.etp={etp} does not divide model.moe.expert_dim={moe.expert_dim}: set it to 1, or the width to "
            f"a multiple of {etp}"
        )
