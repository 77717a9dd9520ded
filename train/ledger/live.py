"""Books of a run that goes on, as rows of its metrics: a view; the ledger is what counts."""

import logging
import time
from pathlib import Path

from models.config import ConfigError
from train.ledger.books import Books
from train.ledger.events import LEDGER, now_ns
from train.ledger.fold import fold
from train.ledger.read import read_ledger

SHARE = 1 / 1000
"""Of a rank's time, for making them: the ledger grows, and is read whole."""
S_PER_BYTE = 0.5e-6
"""Of a ledger, until it was read once: that took 0.13e-6 to 0.48e-6, of 16,000 tiles, on 2 cores, calm and busy."""
LONGEST_S = 5.0
"""For the last ones: all other ranks wait for them."""


class LiveBooks:
    """Of attempt `attempt` at the run in a folder; on rank 0, whose clock is that attempt's. They end no job: what goes
    wrong with them is one warning."""

    def __init__(self, run_folder: Path, attempt: int, started: float) -> None:
        """`started`: the attempt's start by time.monotonic()."""
        self._run_folder, self._attempt = run_folder, attempt
        self._s_per_byte, self._warned = S_PER_BYTE, False
        self._due = started + self._expected_s() / SHARE

    def row(self) -> dict[str, float]:
        """`goodput/*` up to now; {} if that would take more than SHARE of the time since the row before, or the start;
        or a newer attempt has the run."""
        if (began := time.monotonic()) < self._due:
            return {}
        books = self._books(None)
        ended = time.monotonic()
        self._due = ended + (ended - began) / SHARE
        return goodput_row(books) if books else {}

    def last(self, last_word: str) -> Books | None:
        """As if all ranks had ended now, with that cause of their exit; None if that would take longer than LONGEST_S,
        which a warning says."""
        if (expected_s := self._expected_s()) > LONGEST_S:
            self._warn(f"are left out of the last row: they would take about {expected_s:.0f} s")
            return None
        return self._books(last_word)

    def _books(self, last_word: str | None) -> Books | None:
        try:
            began, n_bytes = time.monotonic(), self._bytes()
            books = fold(read_ledger(self._run_folder), now_ns(), last_word)
            if n_bytes:
                self._s_per_byte = (time.monotonic() - began) / n_bytes
        except ConfigError:  # there is no ledger, or it cannot be read
            return None
        except Exception as error:
            self._warn(f"cannot be made ({type(error).__name__}: {error})")
            return None
        return books if books.attempts[-1].number == self._attempt else None

    def _expected_s(self) -> float:
        return self._bytes() * self._s_per_byte

    def _bytes(self) -> int:
        try:
            return sum(path.stat().st_size for path in (self._run_folder / LEDGER).rglob("*.jsonl"))
        except OSError:  # a file that has just gone
            return 0

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger(__name__).warning("the books of %s %s: see switchyard goodput", self._run_folder, what)


def goodput_row(books: Books) -> dict[str, float]:
    """Fractions of all rank-seconds, tokens/s of the wall, and seconds: of the wall, and rank-seconds by bucket."""
    row = {
        "goodput/wall_s": books.wall_ns / 1e9,
        "goodput/ettr": books.ettr,
        "goodput/durable": books.ettr_durable,
        "goodput/optimistic": books.ettr_optimistic,
        "goodput/tokens_per_sec": books.tokens_per_sec,
        "goodput/attempts": len(books.attempts),
    }
    if books.speed_of_light is not None:
        row["goodput/speed_of_light"] = books.speed_of_light
    return row | {f"goodput/bucket/{name}_s": ns / 1e9 for name, ns in books.buckets.items() if ns}
