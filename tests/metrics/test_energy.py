"""The meter of energy on a counter that is written out; a GPU's own is looked at in tests/gpu."""

import math
from collections.abc import Iterable
from contextlib import suppress

import pytest
import torch

from train.metrics.energy import EnergyMeter, Reader, energy_row


def counter(values: Iterable[int | None]) -> Reader:
    """Shows one of `values`, mJ, at each look."""
    left = iter(values)
    return lambda: next(left)


def test_energy_is_what_the_counter_moved() -> None:
    meter = EnergyMeter(counter([7_000_000, 7_350_000, 7_350_000, 7_351_500]))
    assert [meter.joules_since_last() for _ in range(3)] == [350.0, 0.0, 1.5]


def test_what_was_paused_is_left_out() -> None:
    meter = EnergyMeter(counter([0, 1_000, 51_000, 53_000, 54_000]))
    with suppress(OSError), meter.paused():  # from 1 J to 51 J
        raise OSError("disk")
    assert meter.joules_since_last() == 3.0
    assert meter.joules_since_last() == 1.0


@pytest.mark.parametrize("paused", [False, True])
def test_a_counter_that_begins_anew_gives_no_negative_energy(paused: bool) -> None:
    if paused:
        meter = EnergyMeter(counter([1_000, 2_000, 900_000, 500]))
        with meter.paused():
            pass
        assert meter.joules_since_last() == 1.5
    else:
        meter = EnergyMeter(counter([9_000, 400, 600]))
        assert [meter.joules_since_last() for _ in range(2)] == [0.4, 0.2]


def test_a_look_that_failed_makes_no_number() -> None:
    meter = EnergyMeter(counter([1_000, None, 3_000, 4_000]))
    assert [math.isnan(meter.joules_since_last()) for _ in range(2)] == [True, True]
    assert meter.joules_since_last() == 1.0


def test_a_row_is_of_all_ranks_together() -> None:
    row = energy_row([300.0, 340.0], window_s=2.0, tokens=6400)
    assert row == {"power/watts": 320.0, "power/tokens_per_joule": 10.0}


@pytest.mark.parametrize("joules", [[], [300.0, math.nan], [math.nan], [0.0, 0.0]])
def test_no_counter_no_row(joules: list[float]) -> None:
    assert energy_row(joules, window_s=2.0, tokens=6400) == {}


def test_a_cpu_has_no_meter() -> None:
    assert EnergyMeter.open(torch.device("cpu")) is None
