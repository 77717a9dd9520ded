"""Dollars by hand."""

import pytest

from train.metrics.cost import cost_row


def test_gpus_times_hours_times_price() -> None:
    assert cost_row(2.5, n_gpus=8, seconds=5400)["cost/usd"] == pytest.approx(30.0, rel=1e-15)


@pytest.mark.parametrize(("price", "n_gpus"), [(None, 8), (2.5, 0)])
def test_without_a_price_or_gpus_there_is_none(price: float | None, n_gpus: int) -> None:
    assert cost_row(price, n_gpus, 3600) == {}
