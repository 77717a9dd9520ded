"""Loss curves on top of each other, and under them how far each is from the first.

Runs that learnt the same share a line, each in its own colour for a bit of it, in turn.
"""

from collections.abc import Iterator, Sequence
from html import escape

from launch.report.axes import Axes, colour, svg, widened
from launch.report.losses import LOSS, ROUNDING, coinciding
from launch.report.run_view import RunView

WIDTH, CURVES, APART = 1080, 300, 130
"""Pixels: of both charts, and the height of each one's axes."""
MARGIN, LEFT = 44, 86
THICK = 2.6
BIT = 14
"""Pixels of a line in one colour, where runs share it."""


def loss_chart(runs: Sequence[RunView]) -> str | None:
    """The charts; None if no run has two steps."""
    curves = [run.column(LOSS) for run in runs]
    steps = [step for curve in curves for step, _ in curve]
    if not steps or min(steps) == max(steps):
        return None
    across = (float(min(steps)), float(max(steps)))
    size = (WIDTH - LEFT - 20, CURVES)
    axes = Axes(LEFT, MARGIN, *size, across, widened([loss for curve in curves for _, loss in curve]))
    lines = [*axes.grid("step", "training loss, nats a token"), *_lines(runs, curves, ROUNDING, axes)]
    first = dict(curves[0])
    apart = [[(step, loss - first[step]) for step, loss in curve if step in first] for curve in curves]
    values = [value for curve in apart for _, value in curve]
    height = MARGIN + CURVES + MARGIN
    if len(runs) > 1 and any(values):
        below = Axes(LEFT, height + MARGIN, WIDTH - LEFT - 20, APART, across, widened(values, 0.15))
        lines += [*below.grid("step", f"loss less that of {runs[0].label}"), *_lines(runs, apart, 0.0, below)]
        height += MARGIN + APART + MARGIN
    return svg(WIDTH, height, "loss curves", lines)


def legend(runs: Sequence[RunView]) -> str:
    """A switch for each curve."""
    switches = []
    for i, run in enumerate(runs):
        line = f'<path d="M0 6H26" stroke="{colour(i)}" stroke-width="3"/>'
        swatch = f'<svg xmlns="http://www.w3.org/2000/svg" width="26" height="12">{line}</svg>'
        switches.append(f'<label><input type="checkbox" checked="" data-run="{i}"/>{swatch}{escape(run.label)}</label>')
    return f'<div class="switches">{"".join(switches)}</div>'


def _lines(
    runs: Sequence[RunView], curves: Sequence[list[tuple[int, float]]], within: float, axes: Axes
) -> Iterator[str]:
    for group in coinciding(curves, within):
        for place, i in enumerate(group):
            points = " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in curves[i])
            stroke = f'stroke="{colour(i)}" stroke-width="{THICK}"'
            if len(group) > 1:
                others = (len(group) - 1) * BIT
                stroke += f' stroke-dasharray="{BIT} {others}" stroke-dashoffset="{-place * BIT}"'
            said = f"<title>{escape(runs[i].label)}</title>"
            yield f'<polyline class="curve run-{i}" points="{points}" {stroke}>{said}</polyline>'
