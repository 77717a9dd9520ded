"""Books of a run that goes on, as rows of its metrics: a view; the ledger is what counts."""

import time
from pathlib import Path

from models.config import ConfigError
from train.ledger.books import Books
from train.ledger.events import now_ns
from train.ledger.fold import fold
from train.ledger.read import read_ledger

SHARE = 1 / 1000
"""Of a rank's time, for making them: the ledger grows, and is read whole."""


class LiveBooks:
    """Of the run in a folder; on rank 0, whose clock is the newest attempt's."""

    def __init__(self, run_folder: Path) -> None:
        self._run_folder = run_folder
        self._due = 0.0

    def row(self) -> dict[str, float]:
        """`goodput/*` up to now; {} if that would take more than SHARE of the time since the row before."""
        began = time.monotonic()
        if began < self._due:
            return {}
        books = self.books()
        ended = time.monotonic()
        self._due = ended + (ended - began) / SHARE
        return goodput_row(books) if books else {}

    def books(self) -> Books | None:
        """Up to now; None where the ledger cannot be read: no reason to stop."""
        try:
            return fold(read_ledger(self._run_folder), now_ns())
        except ConfigError:
            return None


def goodput_row(books: Books) -> dict[str, float]:
    """Fractions of all rank-seconds, tokens/s of the wall, and seconds: of the wall, and rank-seconds by bucket."""
    row = {
        "goodput/wall_s": books.wall_ns / 1e9,
        "goodput/ettr": books.ettr,
        "goodput/durable": books.ettr,
        "goodput/optimistic": books.ettr_optimistic,
        "goodput/tokens_per_sec": books.tokens_per_sec,
        "goodput/attempts": len(books.attempts),
    }
    if books.speed_of_light is not None:
        row["goodput/speed_of_light"] = books.speed_of_light
    return row | {f"goodput/bucket/{name}_s": ns / 1e9 for name, ns in books.buckets.items() if ns}
