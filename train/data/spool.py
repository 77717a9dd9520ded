"""A folder of tokens that one process fills while others read: how they find each other, and where they stand.

train-00000.bin, … progress.json   as train/data/token_writer.py writes them, by the process that holds the lock
wanted.json                        how many tokens of each split were asked for; the writer stays a little ahead
lock                               held by the writer, and let go by the kernel when it dies
"""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import numpy as np

from train.data.atomic_json import read_json, write_json
from train.data.file_lock import Patience
from train.data.source import DataError
from train.data.token_writer import SPLITS, Progress, id_dtype, shard_name

WANTED_FILE = "wanted.json"
STANDING_FAILURE = 10
"""Polls in a row that see the same failure: fewer, and it may be an earlier run's, which the writer is to take away."""


class Spool:
    """What readers see of the folder. `write_if_nobody_does` is called while one waits."""

    def __init__(self, folder: Path, name: str, vocab_size: int, write_if_nobody_does: Callable[[], None]) -> None:
        """Read from `folder`, which messages call `name`. Nothing is opened yet."""
        self.folder, self.name, self.vocab_size = folder, name, vocab_size
        self._dtype = id_dtype(vocab_size)
        self._write_if_nobody_does = write_if_nobody_does
        self._shard_tokens = 0
        self._asked = dict.fromkeys(SPLITS, 0)
        self._descriptors: dict[str, int] = {}
        self._wanting = Lock()  # the loader's thread asks for training text while an evaluation asks for held-out text

    def wait(self, split: str, tokens: int) -> tuple[int, bool]:
        """How many tokens `split` has, at least `tokens` unless these are all; and whether they are.

        Raises:
            DataError: what the writer failed with.
        """
        patience, failures = Patience(f"tokens of {self.name}, which are being made in {self.folder}"), 0
        while True:
            progress = Progress.read(self.folder)
            if progress:
                self._shard_tokens = progress.shard_tokens
                if progress.tokens[split] >= tokens or progress.done[split]:
                    return progress.tokens[split], progress.done[split]
                failures = failures + 1 if progress.failure else 0
                if progress.failure and failures == STANDING_FAILURE:
                    raise DataError(progress.failure)
            # At each turn: of two ranks that write at once, one wish may be lost.
            self._want(split, tokens)
            self._write_if_nobody_does()
            patience.wait()

    def ask(self, split: str, tokens: int, margin: int) -> None:
        """Let the writer know that `tokens` are wanted now and `margin` more soon, unless it does already."""
        if tokens > self._asked[split]:
            self._asked[split] = tokens + margin
            self._want(split, tokens + margin)

    def ids(self, split: str, start: int, count: int) -> np.ndarray:
        """Ids [count] of `split` from number `start` on, which must be there: see `wait`. Raises DataError."""
        parts = []
        while count:
            number, offset = divmod(start, self._shard_tokens)
            n = min(count, self._shard_tokens - offset)
            name, size = shard_name(split, number), self._dtype.itemsize
            try:
                if name not in self._descriptors:
                    self._descriptors[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
                block = os.pread(self._descriptors[name], n * size, offset * size)
            except OSError as error:
                raise DataError(
                    f"{self.folder / name} cannot be read ({error.strerror}): delete {self.folder}"
                ) from error
            if len(block) < n * size:
                raise DataError(f"{self.folder / name} is shorter than it was: delete {self.folder}")
            parts.append(np.frombuffer(block, self._dtype))
            start, count = start + n, count - n
        return np.concatenate(parts)

    def close(self) -> None:
        """Close the shards."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _want(self, split: str, tokens: int) -> None:
        with self._wanting:
            wanted = read_wanted(self.folder)
            if wanted[split] >= tokens:
                return
            try:
                write_json(self.folder / WANTED_FILE, wanted | {split: tokens})
            except OSError as error:
                raise DataError(f"{self.folder} cannot be written to ({error.strerror}): set data.cache_dir") from error


def read_wanted(folder: Path) -> dict[str, int]:
    """Tokens of each split that readers of `folder` have asked for."""
    return dict.fromkeys(SPLITS, 0) | (read_json(folder / WANTED_FILE) or {})


class SpoolStream:
    """Windows of a spool's tokens in the order they were made in, and from the first again after the last.

    Sample i is ids [i·S, i·S + S + 1). It is waited for if it is not there yet.
    """

    def __init__(self, spool: Spool, split: str, sequence_length: int, margin: int) -> None:
        """Read `split`; of the tokens behind a sample, ask for `margin` at once."""
        self._spool, self._split, self._margin = spool, split, margin
        self.sequence_length, self.vocab_size = sequence_length, spool.vocab_size
        self._tokens = 0
        self._windows: int | None = None  # known at the end

    def __getitem__(self, position: int) -> np.ndarray:
        """The sample at `position` >= 0 as int64 ids [sequence_length + 1].

        Raises IndexError below 0, and DataError if it cannot be made.
        """
        if position < 0:
            raise IndexError(f"position {position} is before the first sample")
        start = position * self.sequence_length
        end = start + self.sequence_length + 1
        if self._windows is None:
            self._spool.ask(self._split, end, self._margin)
            if end > self._tokens:
                self._tokens, done = self._spool.wait(self._split, end)
                self._windows = self._count() if done else None
        if self._windows is not None:
            start = position % self._windows * self.sequence_length
        return self._spool.ids(self._split, start, self.sequence_length + 1).astype(np.int64)

    def _count(self) -> int:
        """Windows of a split that is whole."""
        count = max(0, self._tokens - 1) // self.sequence_length
        if not count:
            raise DataError(
                f"{self._spool.name} has {self._tokens} tokens in all for {self._split}, and one sample takes "
                f"{self.sequence_length + 1}: lower data.sequence_length, change data.heldout_fraction, or give it "
                "more text"
            )
        return count
