"""Loss curves on top of each other, and under them how far each is from the first."""

from collections.abc import Iterator, Sequence
from html import escape

from launch.report.axes import Axes, colour, dash, svg, widened
from launch.report.losses import LOSS
from launch.report.run_view import RunView

WIDTH, CURVES, APART = 1080, 300, 130
"""Pixels: of both charts, and the height of each one's axes."""
MARGIN, LEFT = 44, 86
WIDEST, NARROWEST = 7.0, 1.8
"""Pixels of the first line and of the last, which lies on top: lines that coincide show as bands around it."""


def loss_chart(runs: Sequence[RunView]) -> str | None:
    """The charts; None if no run has two steps."""
    curves = [run.column(LOSS) for run in runs]
    steps = [step for curve in curves for step, _ in curve]
    if not steps or min(steps) == max(steps):
        return None
    across = (float(min(steps)), float(max(steps)))
    size = (WIDTH - LEFT - 20, CURVES)
    axes = Axes(LEFT, MARGIN, *size, across, widened([loss for curve in curves for _, loss in curve]))
    lines = [*axes.grid("step", "training loss, nats a token"), *_lines(runs, curves, axes)]
    first = dict(curves[0])
    apart = [[(step, loss - first[step]) for step, loss in curve if step in first] for curve in curves]
    values = [value for curve in apart for _, value in curve]
    height = MARGIN + CURVES + MARGIN
    if len(runs) > 1 and any(values):
        below = Axes(LEFT, height + MARGIN, WIDTH - LEFT - 20, APART, across, widened(values, 0.15))
        lines += [*below.grid("step", f"loss less that of {runs[0].label}"), *_lines(runs, apart, below)]
        height += MARGIN + APART + MARGIN
    return svg(WIDTH, height, "loss curves", lines)


def legend(runs: Sequence[RunView]) -> str:
    """A switch for each curve."""
    switches = []
    for i, run in enumerate(runs):
        line = f'<path d="M0 6H26" stroke="{colour(i)}" stroke-width="3" stroke-dasharray="{dash(i)}"/>'
        swatch = f'<svg xmlns="http://www.w3.org/2000/svg" width="26" height="12">{line}</svg>'
        switches.append(f'<label><input type="checkbox" checked="" data-run="{i}"/>{swatch}{escape(run.label)}</label>')
    return f'<div class="switches">{"".join(switches)}</div>'


def _lines(runs: Sequence[RunView], curves: Sequence[list[tuple[int, float]]], axes: Axes) -> Iterator[str]:
    for i, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        if not curve:
            continue
        width = WIDEST - (WIDEST - NARROWEST) * i / max(1, len(runs) - 1)
        points = " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in curve)
        drawn = f'stroke="{colour(i)}" stroke-width="{width:.1f}" stroke-dasharray="{dash(i)}"'
        yield f'<polyline class="curve run-{i}" points="{points}" {drawn}><title>{escape(run.label)}</title></polyline>'
