"""What all rank-seconds of each run went to: a bar of all runs by what it was, and each one's waterfall."""

from collections.abc import Sequence

from launch.bars_picture import BarStyle, DividedBar, draw_bars
from launch.goodput.picture import COLOURS, WaterfallPicture
from launch.report.run_view import RunView
from train.ledger.books import Books
from train.ledger.waterfall import Group, waterfall

TRAINED = "compute in steps that count"
SHARES = BarStyle(
    "% of all rank-seconds since the job was launched",
    {TRAINED: COLOURS[Group.level]}
    | {group.value: colour for group, colour in COLOURS.items() if group != Group.level},
    lambda share: f"{share:.1f} %",
)


def goodput_bars(runs: Sequence[RunView]) -> str | None:
    """The bars; None if no run has a ledger."""
    bars = []
    for run in runs:
        if run.books and run.books.total:
            starts = len(run.books.attempts)
            said = f"goodput {run.books.ettr:.1%}, {starts} {'start' if starts == 1 else 'starts'}"
            parts = shares(run.books)
            bars.append(DividedBar(run.label, said, parts, max(100.0, sum(share for _, share in parts))))
    return draw_bars(bars, "where all rank-seconds went", SHARES) if bars else None


def shares(books: Books) -> list[tuple[str, float]]:
    """Per cent of all rank-seconds by group of rungs, what trained the model first; a negative rest takes no room."""
    by_group = dict.fromkeys(SHARES.colours, 0.0)
    for rung in waterfall(books):
        if rung.group is not Group.level:
            by_group[rung.group.value] += rung.ns
    by_group[TRAINED] = books.total - sum(by_group.values())
    return [(name, 100 * ns / books.total) for name, ns in by_group.items() if ns > 0]


def waterfalls(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    """Name and picture of each run that has a ledger."""
    return [(run.label, WaterfallPicture(run.books, run.label).svg()) for run in runs if run.books and run.books.total]
