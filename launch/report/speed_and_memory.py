"""Tokens/s against memory: what a layout gives for what it takes. Up and to the left is better."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from launch.bars_picture import CHARACTER
from launch.report.axes import Axes, colour, svg, text, widened
from launch.report.run_view import RunView

WIDTH, HEIGHT = 1080, 420
LINE = 15
"""Pixels between the middles of two labels."""
RADIUS = 6


def speed_and_memory(runs: Sequence[RunView]) -> str | None:
    """The chart; None if no run has logged its memory. The line joins what no other run that is done beats in both."""
    shown = [(i, run, memory) for i, run in enumerate(runs) if (memory := run.summary.peak_memory_gib) is not None]
    if not shown:
        return None
    speeds, memories = [run.summary.tokens_per_sec for _, run, _ in shown], [memory for *_, memory in shown]
    done = [(memory, run.summary.tokens_per_sec) for _, run, memory in shown if run.is_done]
    axes = Axes(86, 40, WIDTH - 86 - 20, HEIGHT - 40 - 52, widened(memories, 0.15), widened(speeds, 0.12))
    lines = list(axes.grid("largest memory of rank 0, GiB", "tokens/s"))
    best = [(axes.x(memory), axes.y(speed)) for memory, speed in unbeaten(done)]
    if len(best) > 1:
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in best[1:])
        lines.append(f'<path class="best" d="M{best[0][0]:.1f} {best[0][1]:.1f}{steps}"/>')
    taken = [
        box for (x, y), (next_x, next_y) in pairwise(best) for box in ((x, y, next_x, y), (next_x, next_y, next_x, y))
    ]
    for i, run, memory in sorted(shown, key=lambda one: -one[1].summary.tokens_per_sec):
        speed = run.summary.tokens_per_sec
        x, y = axes.x(memory), axes.y(speed)
        taken.append((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS))
        said = escape(f"{run.label}: {speed:,.0f} tokens/s, {memory:.2f} GiB")
        lines.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{colour(i)}"><title>{said}</title></circle>'
        )
    for _, run, memory in sorted(shown, key=lambda one: -one[1].summary.tokens_per_sec):
        lines += _label(run.label, axes.x(memory), axes.y(run.summary.tokens_per_sec), axes, taken)
    return svg(WIDTH, HEIGHT, "tokens/s against memory", lines)


def unbeaten(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs of cost and gain than which no other costs no more and gains more, by cost."""
    kept: list[tuple[float, float]] = []
    for cost, gain in sorted(pairs, key=lambda pair: (pair[0], -pair[1])):
        if not kept or gain > kept[-1][1]:
            kept.append((cost, gain))
    return kept


def _label(name: str, x: float, y: float, axes: Axes, taken: list[tuple[float, float, float, float]]) -> list[str]:
    """The name beside its point, as near as there is room; a thin line leads to one that is not near."""
    width = CHARACTER * len(name)
    for away in range(12):
        for dy in (away * LINE, -away * LINE) if away else (0,):
            for anchor, left in (("start", x + RADIUS + 5), ("end", x - RADIUS - 5 - width)):
                box = (left, y + dy - LINE / 2, left + width, y + dy + LINE / 2)
                inside = axes.left < box[0] and box[2] < axes.left + axes.width and axes.top < box[1]
                if inside and box[3] < axes.top + axes.height and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    at = left if anchor == "start" else left + width
                    lead = f'<path class="lead" d="M{x:.1f} {y:.1f}L{at:.1f} {y + dy:.1f}"/>' if away else ""
                    return [lead, text(at, y + dy, name, anchor)]
    return []  # its title has it


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
