"""The waterfall as a page without scripts or styles of its own: for a board of metrics to show."""

from html import escape

from train.ledger.books import Books
from train.ledger.waterfall import Group, waterfall

COLOURS = {
    Group.level: "#2f6f4f",
    Group.outside: "#8a8a8a",
    Group.start_up: "#5b7fa6",
    Group.lost: "#b3423a",
    Group.between: "#c48a3f",
    Group.in_steps: "#8f6bb0",
}


def waterfall_html(books: Books) -> str:
    """A table: each rung's name, its bar between none and all rank-seconds, its part and its seconds."""
    lines = []
    for rung in waterfall(books):
        left, width = (100 * max(0.0, ns) / books.total for ns in (rung.bottom, rung.ns))
        place = f"margin-left:{left:.2f}%;width:{width:.2f}%"
        bar = f'<div style="{place};height:1em;background:{COLOURS[rung.group]}"></div>'
        seconds = f"{rung.ns / 1e9:,.1f} s"
        cells = f'<td>{escape(rung.name)}</td><td style="width:60%">{bar}</td>'
        lines.append(f"<tr>{cells}<td>{rung.ns / books.total:.2%}</td><td>{seconds}</td></tr>")
    return f'<table style="width:100%;font:13px sans-serif">{"".join(lines)}</table>'
