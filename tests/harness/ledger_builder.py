"""Ledgers made by hand, in whole seconds: a rank's lines are written as it and its watcher would write them."""

import json
from pathlib import Path
from typing import Any

from train.ledger.books import Books
from train.ledger.ending import AGREED
from train.ledger.events import attempt_folder
from train.ledger.fold import fold
from train.ledger.read import read_ledger

S = 1_000_000_000
WALL = 1_700_000_000 * S
"""What the wall clock shows when every boot's own clock shows 0, unless told otherwise."""
FLOPS = {"tokens_per_step": 100, "flops_per_token": 6.0, "peak_flops": 1200.0}
"""A step's FLOPs take 0.5 rank-seconds at peak."""


class Rank:
    """One rank of one attempt; its time goes on from call to call."""

    def __init__(self, run: Path, attempt: int, rank: int = 0) -> None:
        self._folder, self._rank = attempt_folder(run, attempt), rank
        self._folder.mkdir(parents=True, exist_ok=True)
        self.now = 0.0

    def start(self, process: float, main: float, joined: float, ranks: int = 1, **fields: Any) -> "Rank":
        """Its first line, written when it joined. Seconds; `wall` is what the wall clock shows at 0."""
        self.now = joined
        wall = fields.pop("wall", 0) * S + WALL + round(joined * S)
        times = {"process": round(process * S), "main": round(main * S), "joined": round(joined * S)}
        launched = fields.pop("launched", None)
        told = {"launched": None if launched is None else round(launched * S), "submitted": None, "layout": "ddp"}
        named = {"rank": self._rank, "ranks": ranks, "host": "a", "boot": "boot-a", "wall": wall}
        return self.event("start", **(named | times | told | FLOPS | fields))

    def tile(self, **seconds: float) -> "Rank":
        """A tile of one or more buckets, as long as they are."""
        return self._tile({name: round(s * S) for name, s in seconds.items()}, sum(seconds.values()))

    def steps(self, first: int, *seconds: float, wall: float | None = None, **buckets: float) -> "Rank":
        """A tile of steps that took so long each, in `buckets`, or all of it compute_fwd; of `wall` in all."""
        named = {name.replace("__", "/"): s for name, s in buckets.items()} or {"compute_fwd": sum(seconds)}
        ns = {name: round(s * S) for name, s in named.items()}
        last = first + len(seconds) - 1
        took = sum(ns.values()) / S if wall is None else wall
        return self._tile(ns, took, first=first, last=last, step_ns=[round(s * S) for s in seconds])

    def event(self, ev: str, at: float | None = None, **fields: Any) -> "Rank":
        """Any other line, now or `at` a time that it becomes."""
        if at is not None:
            self.now = at
        self._write("rank", ev, self.now, fields)
        return self

    def committed(self, step: int, at: float | None = None) -> "Rank":
        """A checkpoint of 2 GB that took 4 s."""
        return self.event("committed", at, step=step, bytes=2_000_000_000, seconds=4.0)

    def exit(self, cause: str, at: float | None = None) -> "Rank":
        """Last words; all ranks have agreed on what they can agree on."""
        if cause in AGREED:
            self.event("stop", at, cause=cause)
        return self.event("exit", at, cause=cause, code=0)

    def gone(self, at: float, phase: str = "compute_fwd", step: int = 0, beat: float = 0.0) -> "Rank":
        """Its watcher saw it die, its last beat being `beat`."""
        return self._seen("gone", at, phase, step, beat)

    def hang(self, at: float, phase: str = "compute_fwd", step: int = 0, beat: float = 0.0) -> "Rank":
        """Its watcher lost patience."""
        return self._seen("hang", at, phase, step, beat, phase_limit=True)

    def _seen(self, ev: str, at: float, phase: str, step: int, beat: float, phase_limit: bool = False) -> "Rank":
        fields: dict[str, Any] = {"beat": {"phase": phase, "step": step, "t": round(beat * S)}}
        self._write("watch", ev, at, fields | ({"phase": phase, "limit_s": 60.0} if phase_limit else {}))
        return self

    def _tile(self, buckets: dict[str, int], took: float, **fields: Any) -> "Rank":
        begin, self.now = round(self.now * S), self.now + took
        return self.event("tile", begin=begin, buckets=buckets, **fields)

    def _write(self, whose: str, ev: str, at: float, fields: dict[str, Any]) -> None:
        with open(self._folder / f"{whose}-{self._rank:05d}.jsonl", "a") as file:
            file.write(json.dumps({"ev": ev, "t": round(at * S)} | fields) + "\n")


def books_of(run: Path, now: float | None = None) -> Books:
    """The books of the ledger in `run`."""
    return fold(read_ledger(run), None if now is None else round(now * S))


def rank_seconds(books: Books) -> dict[str, float]:
    """Buckets with something in them."""
    return {name: ns / S for name, ns in books.buckets.items() if ns}
