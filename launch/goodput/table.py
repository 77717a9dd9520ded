"""What `switchyard goodput` prints."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from train.ledger.books import AttemptBooks, Books
from train.ledger.waterfall import Group, waterfall

BAR = 48
"""Characters of all rank-seconds."""
STYLES = {
    Group.level: "green",
    Group.outside: "red",
    Group.start_up: "magenta",
    Group.lost: "bright_red",
    Group.between: "yellow",
    Group.in_steps: "bright_yellow",
}


def print_books(books: Books, run: str, console: Console) -> None:
    """The waterfall, the attempts, and what follows from them."""
    console.print(_waterfall(books, run))
    console.print(_attempts(books))
    for line in _lines(books):
        _say(console, line)
    for alarm in books.alarms:
        _say(console, alarm, style="red")
    for note in books.notes:
        _say(console, note, style="yellow")


def _waterfall(books: Books, run: str) -> Table:
    title = f"{run}: where {books.total / 1e9:,.1f} rank-seconds went"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    whole = books.total or 1
    for rung in waterfall(books):
        level = rung.group is Group.level
        begin, end = sorted(round(max(0.0, edge) / whole * BAR) for edge in (rung.top, rung.bottom))
        bar = " " * begin + ("█" * (end - begin) or "▏")
        name = Text(rung.name if level else f"  {rung.name}", style="bold" if level else "")
        table.add_row(name, Text(bar, style=STYLES[rung.group]), f"{rung.ns / whole:.2%}", f"{rung.ns / 1e9:,.2f} s")
    return table


def _attempts(books: Books) -> Table:
    table = Table(title="attempts", title_justify="left")
    columns = ("", "ranks", "layout", "went on after", "steps", "lost", "down, s", "span, s", "ended", "part of ETTR")
    for column in columns:
        text = column in ("layout", "ended")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for one in books.attempts:
        table.add_row(
            str(one.number),
            str(one.ranks),
            Text(one.layout),
            "–" if one.resumed_after is None else f"{one.resumed_after:,}",
            "–" if one.first_step is None else f"{one.first_step:,} – {one.last_step:,}",
            f"{one.lost_steps:,}",
            f"{(one.down_ns + one.queue_ns) / 1e9:,.1f}",
            f"{one.span_ns / 1e9:,.1f}",
            Text(_ended(one)),
            f"{sum(one.counted.values()) / books.total:.1%}" if books.total else "–",
        )
    return table


def _ended(one: AttemptBooks) -> str:
    if one.cause is None:
        return "goes on, or nothing saw its end"
    return one.cause if one.ended_by is None else f"{one.cause}, first rank {one.ended_by}"


def _lines(books: Books) -> Iterator[str]:
    wall = f"{books.wall_ns / 1e9:,.1f} s wall, {books.attempts[-1].ranks} ranks"
    at_risk = books.ettr_optimistic - books.ettr
    if books.counted_step > books.durable_step:
        saved = f"saved up to step {books.durable_step:,}" if books.durable_step else "none is saved"
        stands = f"all {books.standing_steps:,} steps of the finished job, {saved}"
    else:
        stands = f"durable up to step {books.durable_step:,}"
    goodput = f"goodput {books.ettr:.1%} of {wall}; {stands}"
    yield f"{goodput}; steps at risk until the next save are {at_risk:.1%} more" if at_risk else goodput
    if books.ettr_without_queue != books.ettr:
        yield f"without the time in a queue {books.ettr_without_queue:.1%}"
    speed = f"{books.tokens_per_sec:,.0f} tokens/s of the wall ({books.counted_tokens:,} tokens)"
    if books.speed_of_light is not None and books.mfu_in_step is not None:
        light = f"{books.speed_of_light:.2%} of what the devices could do at peak"
        speed += f", {light} = ETTR × {books.mfu_in_step:.1%} MFU in those steps"
    yield speed
    if lost := ", ".join(f"{cause} {ns / 1e9:,.1f} s" for cause, ns in books.causes.items()):
        yield f"lost work, rank-seconds: {lost}"
    saves = books.saves.as_json()
    if books.saves.blocked_s is not None:
        taken = f", {saves['mean_seconds']:,.2f} s from begin to commit" if "mean_seconds" in saves else ""
        speed = f", {saves['gb_per_s']:,.3g} GB/s" if "gb_per_s" in saves else ""
        failed = f", {books.saves.unsaved:,} failed" if books.saves.unsaved else ""
        held = f"training held up {books.saves.blocked_s:,.2f} s by each"
        yield f"{books.saves.begun:,} saves ({books.saves.committed:,} committed{failed}): {held}{taken}{speed}"
    yield books.advice.sentence
    if books.dropped_lines:
        yield f"{books.dropped_lines:,} lines of the ledger were torn or none of ours: left out"


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
