"""Which ranks talk inside a node and which across, by the layout's innermost dimensions.

torchrun numbers ranks node by node, so a group of neighbours lies within a node if its size divides the node's ranks.
Tensor-parallel ranks exchange all activations twice a layer and are to stay inside; expert-parallel ones may leave, as
DeepSeek-V3's do, at the network's price; where they read each other's memory they may not.
"""

import math

from models.config import ConfigError
from parallel.config import StrategyConfig
from parallel.expert_parallel.build import DispatcherName
from parallel.mesh import Degrees


def check_nodes(strategy: StrategyConfig, degrees: Degrees, ranks_per_node: int) -> None:
    """Refuse tensor parallelism across nodes of `ranks_per_node` ranks, and memory that ranks of several nodes share.

    Raises:
        ConfigError: naming strategy.tp, or strategy.dispatcher.
    """
    if strategy.nvlink_domain is not None and strategy.nvlink_domain < 1:
        raise ConfigError(f"strategy.nvlink_domain={strategy.nvlink_domain}: set it to at least 1, or null")
    domain, what = _domain(strategy, ranks_per_node)
    if domain % degrees.tp:
        raise ConfigError(
            f"strategy.tp={degrees.tp} does not fit into {what}: tensor-parallel ranks would talk over the network in "
            f"every layer; set strategy.tp={math.gcd(degrees.tp, domain)} and another degree, as strategy.dp_shard, to "
            "-1 for the rest"
        )
    if strategy.dispatcher is DispatcherName.symmetric_memory and ranks_per_node % degrees.ep:
        raise ConfigError(
            f"strategy.dispatcher=symmetric_memory: strategy.ep={degrees.ep} does not fit into a node, which has "
            f"{ranks_per_node} rank{'s' * (ranks_per_node > 1)}, and ranks of several share no memory; set it to "
            "all_gather"
        )


def experts_across_nodes(strategy: StrategyConfig, degrees: Degrees, ranks_per_node: int) -> str | None:
    """What to tell a user whose experts' rows leave the node; None if they stay."""
    domain, what = _domain(strategy, ranks_per_node)
    if degrees.ep == 1 or domain % (degrees.ep * degrees.etp) == 0:
        return None
    return f"strategy.ep={degrees.ep} does not fit into {what}: rows to experts cross the network in every layer"


def _domain(strategy: StrategyConfig, ranks_per_node: int) -> tuple[int, str]:
    """How many neighbouring ranks a fast network joins, and how to call them."""
    if strategy.nvlink_domain is not None:
        return strategy.nvlink_domain, f"an NVLink domain of {strategy.nvlink_domain} (strategy.nvlink_domain)"
    return ranks_per_node, f"a node, which has {ranks_per_node} rank{'s' * (ranks_per_node > 1)}"
