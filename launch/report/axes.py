"""Two axes with round numbers on them, for the charts of a page. Colours are the page's own: see style.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from launch.bars_picture import ticks

PALETTE = (
    *("#2f6fdb", "#d9570a", "#17875a", "#b8408f", "#8a6d00", "#6b5bd2"),
    *("#0b8494", "#c2414a", "#5d7a24", "#a0562b", "#66758a", "#9d4edd"),
)
"""Of runs, over and over: each has a contrast of 3 and more on the page's light and its dark paper."""


def colour(index: int) -> str:
    """Of the run `index`."""
    return PALETTE[index % len(PALETTE)]


@dataclass(frozen=True)
class Axes:
    """A rectangle in pixels, and what its edges mean."""

    left: int
    top: int
    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Pixels of `value`."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        """Pixels of `value`, counted downwards as SVG does."""
        low, high = self.y_range
        return self.top + self.height - (value - low) / (high - low) * self.height

    def grid(self, x_name: str, y_name: str) -> Iterator[str]:
        """Lines, numbers and names."""
        right, bottom = self.left + self.width, self.top + self.height
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            yield f'<path class="rule" d="M{self.left} {y:.1f}H{right}"/>'
            yield text(self.left - 8, y, f"{tick:,g}", "end", "muted")
        for tick in ticks(*self.x_range):
            x = self.x(tick)
            yield f'<path class="rule" d="M{x:.1f} {self.top}V{bottom}"/>'
            yield text(x, bottom + 14, f"{tick:,g}", "middle", "muted")
        yield text(self.left + self.width / 2, bottom + 34, x_name, "middle", "muted")
        yield text(self.left, self.top - 14, y_name, "start", "muted")


def text(x: float, y: float, said: str, anchor: str = "start", kind: str = "") -> str:
    """A text at a place; `kind` is its class."""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(said)}</text>'


def svg(width: int, height: int, title: str, lines: Iterator[str] | list[str]) -> str:
    """A chart of the page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img"><title>{escape(title)}</title>{"".join(lines)}</svg>'
    )


def widened(values: list[float], by: float = 0.08) -> tuple[float, float]:
    """The range of `values`, with some room around it; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * by or abs(high) * by or 1.0
    return low - room, high + room
