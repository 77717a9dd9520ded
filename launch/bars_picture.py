"""Horizontal bars as a picture: one for each name, divided into parts whose colours a legend explains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

INK, PAPER, RULE = "#202020", "#ffffff", "#e4e4e4"
BAR, GAP, MARGIN, LINE = 26, 12, 16, 20
AXIS = 720
"""Pixels of the longest bar."""
CHARACTER = 7.2
"""Pixels of one at 12 pixels sans-serif, rounded up: nothing here can measure a text."""
TICKS = 5
"""As many as fit the axis, or a few more: they are round numbers."""


@dataclass(frozen=True)
class DividedBar:
    """One bar, in the axis's unit."""

    name: str
    label: str
    """Right of the bar."""
    parts: Sequence[tuple[str, float]]
    """From the left; none below 0."""
    length: float
    """Of all of it, at least what its parts take."""


@dataclass(frozen=True)
class BarStyle:
    """What a picture's bars have in common."""

    axis: str
    """What it measures, and in which unit."""
    colours: Mapping[str, str]
    """Of every part that there may be, in the legend's order."""
    said: Callable[[float], str]
    """A part's size, as it is shown to who points at it."""


def draw_bars(bars: Sequence[DividedBar], title: str, style: BarStyle) -> str:
    """SVG text of `bars`, from the top; at least one, and one of them longer than 0."""
    longest = max(bar.length for bar in bars)
    left = 2 * MARGIN + round(CHARACTER * max(len(bar.name) for bar in bars))
    right = MARGIN + round(CHARACTER * max(len(bar.label) for bar in bars))
    scale = AXIS / longest
    top = 2 * MARGIN + LINE
    bottom = top + len(bars) * (BAR + GAP)
    legend = list(_legend(bars, style, left, bottom + 3 * LINE))
    width, height = left + AXIS + right, bottom + (4 + len(legend) // 3) * LINE + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" dominant-baseline="central" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        _text(MARGIN, MARGIN + LINE / 2, title, bold=True),
    ]
    for tick in ticks(0.0, longest):
        x = left + tick * scale
        lines.append(f'<path d="M{x:.1f} {top - GAP / 2:g}V{bottom}" stroke="{RULE}"/>')
        lines.append(_text(x, bottom + LINE / 2, f"{tick:g}", anchor="middle"))
    lines.append(_text(left + AXIS / 2, bottom + 1.5 * LINE, style.axis, anchor="middle"))
    for i, bar in enumerate(bars):
        lines += _bar(bar, style, left, top + i * (BAR + GAP), scale)
    return "\n".join([*lines, *(line for lines in legend for line in lines), "</svg>\n"])


def _bar(bar: DividedBar, style: BarStyle, left: int, y: int, scale: float) -> Iterator[str]:
    middle, x = y + BAR / 2, float(left)
    yield _text(left - MARGIN / 2, middle, bar.name, anchor="end")
    for name, size in bar.parts:
        width = size * scale
        said = f"{escape(bar.name)}: {name} {style.said(size)}"
        place = f'x="{x:.2f}" y="{y}" width="{width:.2f}" height="{BAR}"'
        yield f'<rect {place} fill="{style.colours[name]}"><title>{said}</title></rect>'
        x += width
    yield _text(x + MARGIN / 2, middle, bar.label)


def _legend(bars: Sequence[DividedBar], style: BarStyle, left: int, top: int) -> Iterator[tuple[str, str]]:
    """Colour and name of what the bars have, three a line."""
    there = {name for bar in bars for name, _ in bar.parts}
    for i, name in enumerate(name for name in style.colours if name in there):
        x, y = left + i % 3 * (AXIS // 3), top + i // 3 * LINE
        yield (
            f'<rect x="{x}" y="{y - 6}" width="12" height="12" fill="{style.colours[name]}"/>',
            _text(x + LINE, y, name),
        )


def _text(x: float, y: float, text: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from `low` to `high`, which is larger."""
    rough = (high - low) / TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = ceil(low / step - 1e-4), floor(high / step + 1e-4)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]
