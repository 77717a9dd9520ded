"""The waterfall as a picture, SVG or PNG: a line a rung, all rank-seconds as wide as the axis."""

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from launch.glyphs import HEIGHT, dots, text_width
from launch.png import Canvas
from train.ledger.books import Books
from train.ledger.waterfall import Group, Rung, waterfall

COLOURS = {
    Group.level: "#74c476",
    Group.outside: "#9e9e9e",
    Group.start_up: "#8c6bb1",
    Group.lost: "#de2d26",
    Group.between: "#c9a227",
    Group.in_steps: "#fdae6b",
}
INK, PAPER, TRACK = "#202020", "#ffffff", "#f2f2f2"
AXIS, BAR, GAP, MARGIN = 640, 18, 6, 16


class Line(NamedTuple):
    """One rung, laid out in pixels."""

    y: int
    x: int
    width: int
    colour: str
    name: str
    share: str


class WaterfallPicture:
    """Laid out once."""

    def __init__(self, books: Books, run: str) -> None:
        rungs = waterfall(books)
        self._title = f"{run}: goodput {books.ettr:.1%} of {books.total / 1e9:,.1f} rank-seconds"
        self._left = 2 * MARGIN + max(text_width(rung.name) for rung in rungs)
        self._lines = list(self._laid_out(rungs, books.total or 1))
        self._right = self._left + AXIS + GAP
        self.width = max(
            self._right + max(text_width(line.share) for line in self._lines),
            MARGIN + text_width(self._title),
        )
        self.width += MARGIN
        self.height = self._lines[-1].y + BAR + MARGIN

    def svg(self) -> str:
        """The picture as SVG text."""
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="sans-serif" font-size="12" dominant-baseline="central" fill="{INK}">',
            f"<title>{escape(self._title)}</title>",
            f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>',
            f'<text x="{MARGIN}" y="{MARGIN + BAR // 2}" font-weight="bold">{escape(self._title)}</text>',
        ]
        for line in self._lines:
            middle = line.y + BAR // 2
            said = escape(f"{line.name} {line.share}")
            lines += [
                f'<text x="{self._left - GAP}" y="{middle}" text-anchor="end">{escape(line.name)}</text>',
                f'<rect x="{self._left}" y="{line.y}" width="{AXIS}" height="{BAR}" fill="{TRACK}"/>',
                f'<rect x="{line.x}" y="{line.y}" width="{line.width}" height="{BAR}" fill="{line.colour}">'
                f"<title>{said}</title></rect>",
                f'<text x="{self._right}" y="{middle}">{line.share}</text>',
            ]
        return "\n".join([*lines, "</svg>\n"])

    def png(self) -> bytes:
        """The picture as a PNG file."""
        canvas = Canvas(self.width, self.height, [PAPER, INK, TRACK, *COLOURS.values()])
        canvas.draw(dots(self._title, MARGIN, MARGIN + (BAR - HEIGHT) // 2), INK)
        for line in self._lines:
            text = line.y + (BAR - HEIGHT) // 2
            canvas.fill(self._left, line.y, AXIS, BAR, TRACK)
            canvas.fill(line.x, line.y, line.width, BAR, line.colour)
            canvas.draw(dots(line.name, self._left - GAP - text_width(line.name), text), INK)
            canvas.draw(dots(line.share, self._right, text), INK)
        return canvas.encode()

    def _laid_out(self, rungs: list[Rung], whole: int) -> Iterator[Line]:
        for i, rung in enumerate(rungs):
            y = MARGIN + (i + 1) * (BAR + GAP)
            begin, end = sorted(
                self._left + min(AXIS, round(max(0.0, edge) / whole * AXIS)) for edge in (rung.top, rung.bottom)
            )
            yield Line(y, begin, max(1, end - begin), COLOURS[rung.group], rung.name, f"{rung.ns / whole:.2%}")
