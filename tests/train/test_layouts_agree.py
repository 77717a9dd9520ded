"""Whole jobs from the command line: every layout trains the same model on the same batches."""

from collections.abc import Callable

import pytest
from harness.run_record import RunRecord


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [pytest.param("fp32", 1e-5, marks=pytest.mark.soak), ("fp64", 1e-12)]
)
def test_two_ranks_train_as_one(
    layout: str, precision: str, tolerance: float, trained: Callable[[str], RunRecord]
) -> None:
    """In float64 also: one rank as two, and as two that accumulate four micro-batches each."""
    one, two = trained(f"single {precision}"), trained(f"{layout} {precision}")
    assert two.column("train/step")[:20] == list(range(1, 21))  # and the books' last row
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        assert two.column(key) == pytest.approx(one.column(key), rel=0, abs=tolerance), key
    # Tokens are counted over all ranks, and experts' loads over the global batch.
    for key in ("train/tokens", "train/lr", "moe/load_max_over_mean", "moe/load_entropy"):
        assert two.column(key) == one.column(key), key
    for key in ("moe/router_entropy", "moe/bias_norm"):
        assert two.column(key) == pytest.approx(one.column(key), rel=0, abs=tolerance), key


def test_the_job_learns(trained: Callable[[str], RunRecord]) -> None:
    losses = trained("single fp32").column("train/loss")
    assert losses[0] > 5.5  # ln 256, and a little for a start that is not uniform
    assert losses[-1] < 4
    assert len(trained("single fp32").column("eval/loss")) == 2
