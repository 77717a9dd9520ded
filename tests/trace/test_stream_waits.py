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
    assert stream_waits(COMPUTE, others, {}) == {"ep": 95 * US}


def test_what_ends_after_the_gap_did_not_hold_it() -> None:
    others = [Interval(20 * US, 250 * US, "dp"), Interval(90 * US, 195 * US, "ep")]
    assert stream_waits(COMPUTE, others, {}) == {"ep": 95 * US}


@pytest.mark.parametrize(("launched", "waited"), [(99, 95), (100, 95), (150, 45), (197, 0)])
def test_before_the_next_kernel_was_launched_the_host_was_late(launched: int, waited: int) -> None:
    others = [Interval(0, 195 * US, "ep")]
    assert stream_waits(compute(launched * US), others, {}) == {"ep": waited * US}


@pytest.mark.parametrize(
    ("told", "waited"),
    [
        ([], 45),
        ([120], 75),
        ([90], 95),
        ([160], 45),
        ([120, 140], 75),
        pytest.param([-10], 45, id="for an earlier gap"),
        pytest.param([-10, 130], 65, id="for an earlier gap, and for this one"),
        pytest.param([15, 130], 65, id="for what was over before this was launched, at 20"),
    ],
)
def test_a_stream_that_was_told_to_wait_does(told: list[int], waited: int) -> None:
    """Since the kernel before the gap was launched, at 0; the next one was at 150."""
    others = [Interval(0, 195 * US, "ep", 20 * US)]
    assert stream_waits(compute(150 * US), others, {"ep": [at * US for at in told]}) == {"ep": waited * US}


def test_what_it_was_told_to_wait_for_is_another_kinds_wait() -> None:
    others = [Interval(0, 50 * US, "dp", 0), Interval(0, 195 * US, "ep", 0)]
    assert stream_waits(compute(150 * US), others, {"dp": [110 * US]}) == {"ep": 45 * US}


def test_where_nobody_knows_when_the_kernel_before_was_launched_nothing_told_counts() -> None:
    kernels = [Interval(0, 100 * US, "gemm"), Interval(200 * US, 300 * US, "gemm", 150 * US)]
    assert stream_waits(kernels, [Interval(0, 195 * US, "ep", 0)], {"ep": [120 * US]}) == {"ep": 45 * US}


def test_kernels_in_a_row_wait_for_nothing() -> None:
    row = [Interval(0, 100, "gemm", 0), Interval(100 + LATENCY_NS - 1, 30_000, "gemm", 0)]
    assert stream_waits(row, [Interval(0, 5_000, "ep")], {}) == {}


def test_a_gap_that_nothing_ran_in_is_nobodys() -> None:
    assert stream_waits(COMPUTE, [Interval(0, 100 * US, "ep")], {}) == {}
