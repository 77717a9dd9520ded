"""What the compute stream waited for, on lines of intervals."""

import pytest

from train.trace.intervals import Interval
from train.trace.stream_waits import LATENCY_NS, stream_waits

US = 1000
COMPUTE = [Interval(0, 100 * US, "gemm", 0), Interval(200 * US, 300 * US, "gemm", 50 * US)]


def compute(launched: int) -> list[Interval]:
    return [COMPUTE[0], Interval(200 * US, 300 * US, "gemm", launched)]


def test_a_gap_is_of_what_released_it() -> None:
    others = [Interval(20 * US, 150 * US, "dp"), Interval(90 * US, 195 * US, "ep")]
    assert stream_waits(COMPUTE, others) == {"ep": 95 * US}


def test_what_ends_after_the_gap_did_not_hold_it() -> None:
    others = [Interval(20 * US, 250 * US, "dp"), Interval(90 * US, 195 * US, "ep")]
    assert stream_waits(COMPUTE, others) == {"ep": 95 * US}


@pytest.mark.parametrize(("launched", "waited"), [(99, 95), (100, 95), (150, 45), (197, 0)])
def test_before_the_next_kernel_was_launched_the_host_was_late(launched: int, waited: int) -> None:
    others = [Interval(0, 195 * US, "ep")]
    assert stream_waits(compute(launched * US), others) == {"ep": waited * US}


@pytest.mark.parametrize(
    ("told", "waited"),
    [([120], 75), ([90], 95), ([120, 140], 75), ([160], 45), ([-10], 45), ([-10, 130], 65), ([], 45)],
)
def test_a_stream_that_was_told_to_wait_does(told: list[int], waited: int) -> None:
    """Since the kernel before the gap was launched, at 0; the next one was at 150."""
    others = [Interval(0, 195 * US, "ep")]
    assert stream_waits(compute(150 * US), others, [at * US for at in told]) == {"ep": waited * US}


def test_kernels_in_a_row_wait_for_nothing() -> None:
    row = [Interval(0, 100, "gemm", 0), Interval(100 + LATENCY_NS - 1, 30_000, "gemm", 0)]
    assert stream_waits(row, [Interval(0, 5_000, "ep")]) == {}


def test_a_gap_that_nothing_ran_in_is_nobodys() -> None:
    assert stream_waits(COMPUTE, [Interval(0, 100 * US, "ep")]) == {}
