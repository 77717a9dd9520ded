"""A simulated schedule as a picture, SVG or PNG: one row a rank, time to the right, a pair is forward over backward.

Both are written from one list of boxes.
"""

from collections.abc import Iterator
from typing import NamedTuple

from launch.glyphs import ADVANCE, DOT, HEIGHT, dots, text_width
from launch.png import Canvas
from launch.schedule_drawing import shortest_cell
from parallel.pipeline.action import Action, Op, Schedule, actions_of
from parallel.pipeline.simulator import Simulation

ROW, GAP = 28, 6
"""Height of a rank's row, and the room between rows."""
MARGIN = 10
WIDEST = 8000
"""Pixels: a picture with very unequal cells leaves out what fits no label."""
INK, PAPER, IDLE = "#202020", "#ffffff", "#ececec"
COLOURS = {
    Op.forward: ("#a9c7f5", "#6f9ce0"),
    Op.backward: ("#a8dcae", "#6bb879"),
    Op.input_backward: ("#9be0da", "#55b8b0"),
    Op.weight_backward: ("#f7cf8e", "#e3a545"),
}
"""Of a cell in the first stage of its rank, and in any other (or in DualPipe's other chain)."""


class Box(NamedTuple):
    """A filled rectangle with a label in its middle, in pixels from the upper left corner."""

    x: int
    y: int
    width: int
    height: int
    colour: str
    label: str

    @property
    def text_width(self) -> int:
        return text_width(self.label)


class Picture:
    """The boxes of a schedule, laid out once."""

    def __init__(self, schedule: Schedule, simulation: Simulation) -> None:
        self._schedule, self._simulation = schedule, simulation
        label = len(str(schedule.n_micro_batches - 1)) * ADVANCE + DOT
        left = 2 * MARGIN + len(str(schedule.n_ranks - 1)) * ADVANCE
        self._left, self._scale = left, min(label / shortest_cell(simulation), WIDEST / simulation.makespan)
        self._boxes = [*self._ranks(), *self._legend()]
        self.width = max(box.x + box.width for box in self._boxes) + MARGIN
        self.height = max(box.y + box.height for box in self._boxes) + MARGIN

    def svg(self) -> str:
        """The picture as SVG text."""
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="sans-serif" font-size="12" '
            f'text-anchor="middle" dominant-baseline="central" fill="{INK}">',
            f"<title>{self._schedule.name}: bubble {self._simulation.bubble:.1%}</title>",
            f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>',
        ]
        for box in self._boxes:
            place = f'x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"'
            lines.append(f'<rect {place} fill="{box.colour}" stroke="{PAPER}"/>')
            if box.label:
                lines.append(f'<text x="{box.x + box.width / 2:g}" y="{box.y + box.height / 2:g}">{box.label}</text>')
        return "\n".join([*lines, "</svg>\n"])

    def png(self) -> bytes:
        """The picture as a PNG file."""
        palette = list(dict.fromkeys((PAPER, INK, *(box.colour for box in self._boxes))))
        canvas = Canvas(self.width, self.height, palette)
        for box in self._boxes:
            # The last column and line part boxes.
            canvas.fill(box.x, box.y, box.width - 1, box.height - 1, box.colour)
            left, top = box.x + (box.width - box.text_width) // 2, box.y + (box.height - HEIGHT) // 2
            canvas.draw(dots(box.label, left, top), INK)
        return canvas.encode()

    def _ranks(self) -> Iterator[Box]:
        """Every rank's number, its whole time as idle, and its cells on top."""
        for rank, row in enumerate(self._simulation.spans):
            y, held = MARGIN + rank * (ROW + GAP), self._schedule.stages_of_rank(rank)
            yield Box(MARGIN, y, self._left - 2 * MARGIN, ROW, PAPER, str(rank))
            yield Box(self._left, y, round(self._simulation.makespan * self._scale), ROW, IDLE, "")
            for span in row:
                actions = actions_of(span.cell)
                x, end = (self._left + round(moment * self._scale) for moment in (span.start, span.end))
                height = ROW // len(actions)
                for i, action in enumerate(actions):
                    colour = COLOURS[action.op][action.key != held[0]]
                    yield _box(x, y + i * height, end - x, height, colour, action)

    def _legend(self) -> Iterator[Box]:
        """The letter of each operation there is, in its colour."""
        every = (action for row in self._schedule.rows for cell in row for action in actions_of(cell))
        there = {action.op for action in every}
        y = MARGIN + self._schedule.n_ranks * (ROW + GAP) + GAP
        for i, op in enumerate(op for op in COLOURS if op in there):
            yield Box(self._left + i * 2 * ROW, y, ROW, ROW // 2 + GAP, COLOURS[op][0], op.value)


def _box(x: int, y: int, width: int, height: int, colour: str, action: Action) -> Box:
    box = Box(x, y, width, height, colour, str(action.micro_batch))
    return box if box.text_width <= width else box._replace(label="")
