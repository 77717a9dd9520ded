"""A simulated schedule as lines of a terminal: one line a rank, time to the right.

    rank 0  F0   F1   F2   ·····B0        F3
    rank 1  ·····F0   B0        F1   B1

F forward, B backward or its halves, I and W; small letters where it is not the rank's first stage; a dot is idle time.
"""

from dataclasses import dataclass

from rich.text import Text

from parallel.pipeline.action import Action, Cell, Op, Schedule, StageKey, actions_of
from parallel.pipeline.simulator import Simulation

IDLE = "·"
STYLES = {
    Op.forward: ("black on bright_blue", "white on blue"),
    Op.backward: ("black on bright_green", "black on green"),
    Op.input_backward: ("black on bright_cyan", "black on cyan"),
    Op.weight_backward: ("black on bright_yellow", "black on yellow"),
}
"""Of a cell in the first stage of its rank, and in any other; the 16 colours that every terminal has."""


def shortest_cell(simulation: Simulation) -> float:
    """Time of the shortest cell: the one whose label needs the room."""
    return min(span.end - span.start for row in simulation.spans for span in row)


def draw(schedule: Schedule, simulation: Simulation, width: int | None) -> list[Text]:
    """One line a rank, in `width` columns; None takes as many as every label needs."""
    name_width = len(f"rank {schedule.n_ranks - 1}  ")
    longest = len(f"F{schedule.n_micro_batches - 1} ")  # a blank between neighbours, for eyes without colours
    scale = longest / shortest_cell(simulation)
    if width is not None:
        scale = min(scale, max(1, width - name_width) / simulation.makespan)
    lines = []
    for rank, row in enumerate(simulation.spans):
        line, held = Text(f"rank {rank}".ljust(name_width)), schedule.stages_of_rank(rank)
        column = 0
        for span in row:
            start, end = round(span.start * scale), round(span.end * scale)
            line.append(IDLE * (start - column))
            for part in _parts(span.cell, end - start, held[0]):
                line.append(part.label.ljust(part.width), STYLES[part.action.op][part.action.key != held[0]])
            column = end
        line.append(IDLE * (round(simulation.makespan * scale) - column))
        lines.append(line)
    return lines


@dataclass(frozen=True)
class _Part:
    """An action's share of a cell."""

    action: Action
    label: str
    width: int


def _parts(cell: Cell, width: int, first: StageKey) -> list[_Part]:
    """A cell's actions side by side in `width` columns, the backward of a pair last and joined by &."""
    actions = actions_of(cell)
    if len(actions) == 1:
        return [_Part(actions[0], _label(actions[0], width, first), width)]
    left = width // 3  # of three equal parts, forward and the two halves of backward
    forward, backward = actions
    joined = "&" if width - left > 1 else ""
    label = _label(backward, width - left - len(joined), first)
    return [_Part(forward, _label(forward, left, first), left), _Part(backward, joined + label, width - left)]


def _label(action: Action, width: int, first: StageKey) -> str:
    """What fits: F12, or else the number, whose colour says the rest, or the letter, or nothing."""
    letter = action.op.value if action.key == first else action.op.value.lower()
    for label in (f"{letter}{action.micro_batch}", str(action.micro_batch), letter):
        if len(label) <= width:
            return label
    return ""
