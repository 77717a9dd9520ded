"""The moe/* of a row from totals that are written out, each by arithmetic that can be done by hand."""

import math

import pytest
import torch

from models.config import Balance, MoEConfig
from models.placement import ExpertPlacement
from models.routing_totals import RoutingTotals
from train.metrics.routing import routing_row

ALONE = ExpertPlacement.contiguous(4)
MOE = MoEConfig(n_routed=4, top_k=2, balance=Balance.none)
TOTALS = RoutingTotals(
    # 10 tokens of two experts each, in two layers.
    chosen_LE=torch.tensor([[5, 5, 5, 5], [10, 0, 6, 4]]).double(),
    dropped_LE=torch.tensor([[0, 0, 0, 0], [4, 0, 1, 0]]).double(),
    entropy_sum_L=torch.tensor([12.0, 4.0]).double(),
    # The first layer has two holders, of biases 1, 1, 1, 1; the second one, of 2, 2, 0, 0.
    bias_square_sum_L=torch.tensor([8.0, 8.0]).double(),
    bias_holders_L=torch.tensor([2.0, 1.0]).double(),
)


def test_loads_and_entropies_are_means_over_layers() -> None:
    row = routing_row(TOTALS, MOE, ALONE)
    uneven = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    assert row == pytest.approx(
        {
            "moe/load_max_over_mean": (1 + 10 / 5) / 2,
            "moe/load_entropy": (1 + uneven / math.log(4)) / 2,
            "moe/router_entropy": (12 / 10 + 4 / 10) / 2,
        },
        rel=1e-15,
    )


@pytest.mark.parametrize(
    ("slots", "loads"), [(((0, 1), (2, 3)), [(10, 10), (10, 10)]), (((0, 2), (3, 1)), [(10, 10), (16, 4)])]
)
def test_ranks_are_those_of_the_placement(slots, loads: list[tuple[int, int]]) -> None:
    row = routing_row(TOTALS, MOE, ExpertPlacement(slots))
    expected = sum(max(of_layer) / 10 for of_layer in loads) / 2
    assert row["moe/rank_load_max_over_mean"] == pytest.approx(expected, rel=1e-15)


def test_what_is_dropped_is_a_share_of_what_was_chosen() -> None:
    row = routing_row(TOTALS, MoEConfig(n_routed=4, top_k=2, balance=Balance.none, capacity_factor=1.0), ALONE)
    assert row["moe/dropped_fraction"] == pytest.approx(5 / 40, rel=1e-15)


def test_biases_are_counted_once_however_many_hold_them() -> None:
    row = routing_row(TOTALS, MoEConfig(n_routed=4, top_k=2, balance=Balance.bias), ALONE)
    assert row["moe/bias_norm"] == pytest.approx(math.sqrt(4 + 8), rel=1e-15)


def test_one_expert_is_loaded_evenly() -> None:
    totals = TOTALS._replace(chosen_LE=torch.full((2, 1), 10.0).double())
    row = routing_row(totals, MoEConfig(n_routed=1, top_k=1), ExpertPlacement.contiguous(1))
    assert row["moe/load_entropy"] == 1
    assert row["moe/load_max_over_mean"] == 1


def test_a_dense_model_has_no_row() -> None:
    assert routing_row(RoutingTotals.zeros(0, 4, torch.device("cpu")), MOE, ALONE) == {}


def test_totals_are_unpacked_as_they_were_packed() -> None:
    for before, after in zip(TOTALS, RoutingTotals.unpack(TOTALS.pack()), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)
