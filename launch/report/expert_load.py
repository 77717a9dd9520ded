"""How uneven experts' loads were, step by step, where not every expert's was written: a line of cells for each run.

Rows of metrics hold the load of each layer's fullest expert over the mean, as a mean over layers (train/metrics/
routing.py): that is what a cell shows. 1 is even.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from launch.bars_picture import CHARACTER
from launch.report.axes import svg, text
from launch.report.run_view import RunView

LOAD = "moe/load_max_over_mean"
RAMP = ("#dbe7f6", "#a9c7ea", "#6f9fd8", "#4577bd", "#2b5597", "#183a6e")
"""From even to uneven."""
WIDTH, ROW, GAP, TOP = 1080, 26, 4, 10
CELLS = 48
"""In a line at most: each is the mean of its steps."""


def expert_load(runs: Sequence[RunView]) -> str | None:
    """The map; None if no run has experts."""
    columns = [(run.label, run.column(LOAD)) for run in runs]
    columns = [(label, column) for label, column in columns if column]
    if not columns:
        return None
    loads = [load for _, column in columns for _, load in column]
    least, most = min(loads), max(loads)
    last = max(step for _, column in columns for step, _ in column)
    left = 24 + round(CHARACTER * max(len(label) for label, _ in columns))
    bottom = TOP + len(columns) * (ROW + GAP)
    lines = []
    for i, (label, column) in enumerate(columns):
        y = TOP + i * (ROW + GAP)
        lines.append(text(left - 8, y + ROW / 2, label, "end"))
        lines += _cells(label, column, (left, y), last, (least, most))
    for part, anchor in ((0, "start"), (1, "end")):
        step = 1 if part == 0 else last
        lines.append(text(left + part * (WIDTH - left - 10), bottom + 12, f"step {step:,}", anchor, "muted"))
    lines += _key(least, most, left, bottom + 34)
    return svg(WIDTH, bottom + 62, "load of the fullest expert over the mean", lines)


def _cells(
    label: str, column: Sequence[tuple[int, float]], at: tuple[int, int], last: int, span: tuple[float, float]
) -> Iterator[str]:
    """One run's, each as wide as the steps that it is the mean of."""
    n_cells = min(CELLS, len(column))
    edges = [round(i * len(column) / n_cells) for i in range(n_cells + 1)]
    scale = (WIDTH - at[0] - 10) / last
    begin = 0
    for first, end in pairwise(edges):
        of_cell = column[first:end]
        load, step = sum(load for _, load in of_cell) / len(of_cell), of_cell[-1][0]
        said = escape(f"{label}, up to step {step:,}: {load:.2f}")
        x, width = at[0] + begin * scale, (step - begin) * scale
        place = f'x="{x:.2f}" y="{at[1]}" width="{max(1.0, width - 1):.2f}" height="{ROW}"'
        shade = shade_of(load, *span)
        yield f'<rect {place} fill="{RAMP[shade]}"><title>{said}</title></rect>'
        if width > 40:
            yield text(x + width / 2, at[1] + ROW / 2, f"{load:.2f}", "middle", "on-dark" if shade > 2 else "on-light")
        begin = step


def shade_of(load: float, least: float, most: float) -> int:
    """Which of RAMP stands for `load`."""
    return min(len(RAMP) - 1, int((load - least) / (most - least) * len(RAMP))) if most > least else 0


def _key(least: float, most: float, left: int, y: int) -> Iterator[str]:
    yield text(left, y + 8, f"{least:.2f}", "start", "muted")
    for i, shade in enumerate(RAMP):
        yield f'<rect x="{left + 40 + i * 28}" y="{y}" width="28" height="16" fill="{shade}"/>'
    after = left + 48 + len(RAMP) * 28
    yield text(
        after, y + 8, f"{most:.2f}: load of a layer's fullest expert over the mean, mean over layers", "start", "muted"
    )
