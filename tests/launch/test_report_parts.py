"""What the parts of a report's page compute."""

import re
from pathlib import Path

import pytest

from launch.report import expert_map
from launch.report.axes import PALETTE
from launch.report.expert_load import RAMP, shade_of
from launch.report.losses import coinciding
from launch.report.run_view import labels
from launch.report.speed_and_memory import unbeaten
from launch.report.style import CSS


def test_runs_that_learnt_the_same_share_a_line() -> None:
    curve = [(1, 6.0), (2, 5.0)]
    near, far = [(1, 6.0), (2, 5.0 + 4e-4)], [(1, 6.0), (2, 5.0 + 6e-4)]
    assert coinciding([curve, far, near, curve[:1]], 1e-4) == [[0, 2], [1], [3]]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", PALETTE)
def test_lines_stand_out_by_day_and_by_night(colour: str) -> None:
    """WCAG's contrast for what is no text, on the page's papers."""
    for paper in re.findall(r"--paper: (#\w+);", CSS):
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3, paper


def test_the_map_goes_from_even_to_uneven() -> None:
    assert [shade_of(load, 1.0, 2.0) for load in (1.0, 1.5, 2.0)] == [0, len(RAMP) // 2, len(RAMP) - 1]
    assert shade_of(1.0, 1.0, 1.0) == 0


@pytest.mark.parametrize(("load", "place"), [(0.0, 0), (0.25, 1), (0.9, 3), (1.25, 4), (100.0, 6)])
def test_a_loads_colour_is_the_same_on_every_page(load: float, place: int) -> None:
    assert expert_map.shade_of(load) == expert_map.SHADES[place]


def test_what_no_other_beats() -> None:
    assert unbeaten([(1, 10), (2, 9), (3, 20), (3, 25), (0.5, 5)]) == [(0.5, 5), (1, 10), (3, 25)]


def test_labels_tell_runs_apart() -> None:
    assert labels([Path("/a/b"), Path("/a/c")]) == ["b", "c"]
    assert labels([Path("/a/x/b"), Path("/a/y/b")]) == ["x/b", "y/b"]
    assert labels([Path("/a")]) == ["a"]
