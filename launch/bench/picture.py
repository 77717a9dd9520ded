"""A comparison as a picture: a bar for each point, as long as its step, divided into where the time went."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

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
WHOLE = "#c5b8a5"
"""Of a step that was not divided."""
INK, PAPER, RULE = "#202020", "#ffffff", "#e4e4e4"
BAR, GAP, MARGIN, LINE = 26, 12, 16, 20
AXIS = 720
"""Pixels of the longest bar."""
CHARACTER = 7.2
"""Pixels of one at 12 pixels sans-serif, rounded up: nothing here can measure a text."""
TICKS = 5
"""As many as fit the axis, or a few more: they are round numbers."""


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
            return [("step, not divided", self.step_s)]
        return [(bucket, s) for bucket in BUCKETS if (s := self.breakdown.get(bucket, 0.0)) > 0]

    @property
    def length_s(self) -> float:
        """Of all of it."""
        return max(self.breakdown.get(WALL, self.step_s), sum(seconds for _, seconds in self.parts))


def draw(bars: Sequence[Bar], title: str) -> str:
    """SVG text of `bars`, from the top; at least one."""
    longest = max(bar.length_s for bar in bars)
    left = 2 * MARGIN + round(CHARACTER * max(len(bar.name) for bar in bars))
    right = MARGIN + round(CHARACTER * max(len(bar.label) for bar in bars))
    scale = AXIS / longest
    top = 2 * MARGIN + LINE
    bottom = top + len(bars) * (BAR + GAP)
    legend = list(_legend(bars, left, bottom + 3 * LINE))
    width, height = left + AXIS + right, bottom + (4 + len(legend) // 3) * LINE + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" dominant-baseline="central" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        _text(MARGIN, MARGIN + LINE / 2, title, bold=True),
    ]
    for tick in _ticks(longest):
        x = left + tick * scale
        lines.append(f'<path d="M{x:.1f} {top - GAP / 2:g}V{bottom}" stroke="{RULE}"/>')
        lines.append(_text(x, bottom + LINE / 2, f"{tick:g}", anchor="middle"))
    lines.append(_text(left + AXIS / 2, bottom + 1.5 * LINE, "seconds a step, mean over ranks", anchor="middle"))
    for i, bar in enumerate(bars):
        lines += _bar(bar, left, top + i * (BAR + GAP), scale)
    return "\n".join([*lines, *(line for lines in legend for line in lines), "</svg>\n"])


def _bar(bar: Bar, left: int, y: int, scale: float) -> Iterator[str]:
    middle, x = y + BAR / 2, float(left)
    yield _text(left - MARGIN / 2, middle, bar.name, anchor="end")
    for name, seconds in bar.parts:
        width = seconds * scale
        said = f"{escape(bar.name)}: {name} {seconds * 1e3:.3g} ms"
        place = f'x="{x:.2f}" y="{y}" width="{width:.2f}" height="{BAR}"'
        yield f'<rect {place} fill="{COLOURS.get(name, WHOLE)}"><title>{said}</title></rect>'
        x += width
    yield _text(x + MARGIN / 2, middle, bar.label)


def _legend(bars: Sequence[Bar], left: int, top: int) -> Iterator[tuple[str, str]]:
    """Colour and name of what the bars have, three a line."""
    there = {name for bar in bars for name, _ in bar.parts}
    for i, name in enumerate(name for name in (*BUCKETS, "step, not divided") if name in there):
        x, y = left + i % 3 * (AXIS // 3), top + i // 3 * LINE
        yield (
            f'<rect x="{x}" y="{y - 6}" width="12" height="12" fill="{COLOURS.get(name, WHOLE)}"/>',
            _text(x + LINE, y, name),
        )


def _text(x: float, y: float, text: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _ticks(longest: float) -> list[float]:
    """0 and multiples of 1, 2 or 5 times a power of ten, up to `longest`."""
    rough = longest / TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(floor(longest / step * 1.0001) + 1)]
