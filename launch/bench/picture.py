"""A comparison as a picture: a bar for each point, as long as its step, divided into where the time went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.bars_picture import BarStyle, DividedBar, draw_bars
from train.metrics.breakdown import BUCKETS, WALL

COLOURS = dict(
    zip(
        BUCKETS,
        (
            "#8c6bb1",  # input
            *("#a9c7f5", "#6f9ce0", "#3f6fb5"),  # compute: blues
            *("#fdd0a2", "#fdae6b", "#fd8d3c", "#e6550d", "#a63603", "#c9a227"),  # communication: oranges
            *("#de2d26", "#9e9e9e", "#74c476", "#d9d9d9"),
        ),
        strict=True,
    )
)
WHOLE = "step, not divided"
STEPS = BarStyle(
    "seconds a step, mean over ranks", COLOURS | {WHOLE: "#c5b8a5"}, lambda seconds: f"{seconds * 1e3:.3g} ms"
)


@dataclass(frozen=True)
class Bar:
    """One point."""

    name: str
    label: str
    """Right of the bar."""
    breakdown: Mapping[str, float]
    """Seconds by bucket, and WALL; empty if the step was not divided."""
    step_s: float
    """Of the whole step; used where it was not divided."""

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Names and seconds, in order; a negative rest takes no room."""
        if not self.breakdown:
            return [(WHOLE, self.step_s)]
        return [(bucket, s) for bucket in BUCKETS if (s := self.breakdown.get(bucket, 0.0)) > 0]

    @property
    def length_s(self) -> float:
        """Of all of it."""
        return max(self.breakdown.get(WALL, self.step_s), sum(seconds for _, seconds in self.parts))


def draw(bars: Sequence[Bar], title: str) -> str:
    """SVG text of `bars`, from the top; at least one."""
    return draw_bars([DividedBar(bar.name, bar.label, bar.parts, bar.length_s) for bar in bars], title, STEPS)
