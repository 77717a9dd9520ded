"""Which layouts leave a node."""

import pytest

from parallel.config import Reduction, StrategyConfig
from parallel.mesh import Degrees
from parallel.nodes import experts_across_nodes

HSDP_EP = StrategyConfig("hsdp_ep", Reduction.shard, dp_replicate=-1, dp_shard=4, ep=4)
TP_ETP = StrategyConfig("tp_etp", Reduction.all_reduce, dp_replicate=-1, tp=2, etp=2, ep=2)


@pytest.mark.parametrize(
    ("strategy", "per_node", "domain", "stays"),
    [
        (HSDP_EP, 4, None, True),
        (HSDP_EP, 8, None, True),
        (HSDP_EP, 2, None, False),
        (HSDP_EP, 6, None, False),  # the second group has ranks of two nodes
        (HSDP_EP, 2, 8, True),
        (TP_ETP, 4, None, True),
        (TP_ETP, 2, None, False),  # an expert's two halves, and two experts
    ],
)
def test_experts_that_leave_a_node(strategy: StrategyConfig, per_node: int, domain: int | None, stays: bool) -> None:
    strategy = StrategyConfig(**vars(strategy) | {"nvlink_domain": domain})
    note = experts_across_nodes(strategy, Degrees.resolve(strategy, 24), per_node)
    assert (note is None) == stays
    assert note is None or note.startswith(f"strategy.ep={strategy.ep} does not fit into a node, which has {per_node} ")
