"""Every expert's load over steps, as a map: a line for each expert, layer under layer; in colours of what part of its
layer's mean it took. Their bounds are the same on every page."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from launch.bars_picture import CHARACTER
from launch.report.axes import svg, text
from train.metrics.expert_load import read_expert_load

BOUNDS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
"""Of a load over its layer's mean, between the colours."""
SHADES = ("#2b5597", "#6f9fd8", "#b9cde6", "#e4e6e9", "#f6c99a", "#e8843a", "#a63603")
WIDTH, GAP, TOP, LEFT = 1080, 8, 10, 104
TALLEST, LOWEST, ALL = 14, 2, 420
"""Pixels of an expert's line, and about so many of all."""
COLUMNS = 60
"""At most: each is the mean of its steps."""


class Loads(NamedTuple):
    """A run's, over the mean of the layer."""

    ends: list[int]
    """Last step of each column."""
    of_layer: list[list[list[float]]]
    """By layer, expert and column."""


def expert_loads(folder: Path) -> Loads | None:
    """Of the run in `folder`; None if it wrote none (measure.expert_load)."""
    rows = read_expert_load(folder)
    if not rows:
        return None
    n_columns = min(COLUMNS, len(rows))
    edges = [round(i * len(rows) / n_columns) for i in range(n_columns + 1)]
    parts = [rows[first:end] for first, end in pairwise(edges)]
    layers = []
    for layer in range(len(rows[0][1])):
        n_experts = len(rows[0][1][layer])
        sums = [[sum(chosen[layer][e] for _, chosen in part) for part in parts] for e in range(n_experts)]
        means = [sum(column) / n_experts or 1.0 for column in zip(*sums, strict=True)]
        layers.append([[load / mean for load, mean in zip(line, means, strict=True)] for line in sums])
    return Loads([part[-1][0] for part in parts], layers)


def expert_map(loads: Loads, title: str) -> str:
    """The picture."""
    n_lines = sum(map(len, loads.of_layer))
    height = max(LOWEST, min(TALLEST, ALL // n_lines))
    lines, y = [], TOP
    for layer, experts in enumerate(loads.of_layer):
        lines.append(text(LEFT - 8, y + len(experts) * height / 2, f"MoE layer {layer}", "end"))
        for expert, line in enumerate(experts):
            lines += _line(f"MoE layer {layer}, expert {expert}", line, loads.ends, y, height)
            y += height
        y += GAP
    lines += [text(LEFT, y + 8, "step 1", "start", "muted"), text(WIDTH, y + 8, f"{loads.ends[-1]:,}", "end", "muted")]
    lines += _key(y + 26)
    return svg(WIDTH, y + 52, title, lines)


def shade_of(load: float) -> str:
    """The colour of a load over its layer's mean."""
    return SHADES[sum(load >= bound for bound in BOUNDS)]


def _line(name: str, line: Sequence[float], ends: Sequence[int], y: int, height: int) -> Iterator[str]:
    """Neighbours of one colour are one rectangle: a page of thousands of them opens slowly."""
    scale = (WIDTH - LEFT) / ends[-1]
    for shade, columns in groupby(range(len(line)), lambda column: shade_of(line[column])):
        held = list(columns)
        begin, end = ends[held[0] - 1] if held[0] else 0, ends[held[-1]]
        loads = [line[column] for column in held]
        share = f"{min(loads):.2f}" if len(loads) == 1 else f"{min(loads):.2f} to {max(loads):.2f}"
        said = escape(f"{name}, steps {begin + 1:,} to {end:,}: {share} of the mean")
        x, width = LEFT + begin * scale, (end - begin) * scale
        place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}"'
        yield f'<rect {place} fill="{shade}"><title>{said}</title></rect>'


def _key(y: int) -> Iterator[str]:
    """What the colours mean."""
    said = [
        f"below {BOUNDS[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(BOUNDS)),
        f"{BOUNDS[-1]:g} and more",
    ]
    x = float(LEFT)
    for shade, words in zip(SHADES, said, strict=True):
        yield f'<rect x="{x:.0f}" y="{y}" width="14" height="14" fill="{shade}"/>'
        yield text(x + 20, y + 7, words, "start", "muted")
        x += 44 + CHARACTER * len(words)
