"""The stopwatch over windows of steps, on an injected clock."""

from contextlib import suppress

import pytest

from train.metrics.throughput import ModelWork, Throughput

WORK = ModelWork(flops_per_token=1_000_000, flops_per_token_palm=1_500_000, peak_tflops=0.001, world_size=2)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_window_counts_its_steps_and_not_what_was_paused() -> None:
    clock = Clock()
    throughput = Throughput(WORK, clock)
    for _ in range(4):
        clock.now += 0.5
        throughput.count(250)
    with throughput.paused():
        clock.now += 60.0
    row = throughput.end_window()
    assert row["perf/step_time_s"] == pytest.approx(0.5)
    assert row["perf/tokens_per_sec"] == pytest.approx(500.0)
    assert row["perf/tokens_per_sec_per_gpu"] == pytest.approx(250.0)
    assert row["perf/tflops_per_gpu"] == pytest.approx(250e6 / 1e12)
    assert row["perf/mfu"] == pytest.approx(0.25)
    assert row["perf/mfu_palm"] == pytest.approx(0.375)


def test_the_next_window_begins_where_the_last_one_ended() -> None:
    clock = Clock()
    throughput = Throughput(WORK, clock)
    clock.now += 10.0
    throughput.count(10)
    throughput.end_window()
    clock.now += 2.0
    throughput.count(10)
    assert throughput.end_window()["perf/tokens_per_sec"] == pytest.approx(5.0)


def test_time_is_left_out_even_if_what_took_it_fails() -> None:
    clock = Clock()
    throughput = Throughput(WORK, clock)
    with suppress(OSError), throughput.paused():
        clock.now += 5.0
        raise OSError("disk")
    clock.now += 1.0
    throughput.count(10)
    assert throughput.end_window()["perf/step_time_s"] == pytest.approx(1.0)
