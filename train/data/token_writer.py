"""Tokens on their way to disk: shards that grow, and a record of how far they are.

train-00000.bin, heldout-00000.bin, …   ids, little-endian; every shard but a split's last has `shard_tokens`
progress.json                           what was recorded last; shards may hold more, which a resume cuts off
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from train.data.atomic_json import read_json, write_json
from train.data.source import DataError

PROGRESS_FILE = "progress.json"
TRAIN, HELDOUT = "train", "heldout"
SPLITS = (TRAIN, HELDOUT)
SHARD_TOKENS = 2**27


@dataclass
class Progress:
    """What progress.json holds."""

    settings: dict[str, Any]
    """What the tokens follow from; a resume with others is refused."""
    shard_tokens: int
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    """Tokens of each split that are on disk."""
    done: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(SPLITS, False))
    """Splits that have all of their tokens."""
    feeds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How far the documents of each feed are (train/data/feed.py)."""
    failure: str | None = None
    """Why no more tokens come, if they do not."""

    @classmethod
    def read(cls, folder: Path) -> "Progress | None":
        """The record in `folder`, None if there is none. Raises DataError if it is another version's."""
        written = read_json(folder / PROGRESS_FILE)
        try:
            return cls(**written) if written is not None else None
        except TypeError as error:
            raise DataError(f"{folder / PROGRESS_FILE} is another version's: delete {folder} and start anew") from error

    def write(self, folder: Path) -> None:
        """Replace the record in `folder`."""
        write_json(folder / PROGRESS_FILE, asdict(self))


class TokenWriter:
    """Appends ids to the splits of one folder, from where `progress` says that they end."""

    def __init__(self, folder: Path, dtype: np.dtype, progress: Progress) -> None:
        """Cut off what lies behind the record. Raises DataError if shards hold less than it says; OSError."""
        self._folder, self._dtype, self.progress = folder, dtype, progress
        self._files: dict[str, BufferedWriter] = {}
        self.tokens = dict(progress.tokens)
        """Of each split, appended: not all of them need be recorded."""
        for split in SPLITS:
            self._truncate(split)

    def append(self, split: str, ids: np.ndarray) -> None:
        """Write ids [n] after the split's others. Raises OSError."""
        ids = ids.astype(self._dtype, copy=False)
        while len(ids):
            shard, filled = divmod(self.tokens[split], self.progress.shard_tokens)
            if split not in self._files:
                self._files[split] = open(self._folder / shard_name(split, shard), "ab")  # noqa: SIM115
            room = self.progress.shard_tokens - filled
            self._files[split].write(ids[:room].tobytes())
            self.tokens[split] += min(room, len(ids))
            if len(ids) >= room:
                self._sync(self._files.pop(split)).close()
            ids = ids[room:]

    def commit(self) -> None:
        """Bring all that was appended to disk, and then record it with what else changed in `progress`."""
        for file in self._files.values():
            self._sync(file)
        self.progress.tokens = dict(self.tokens)
        self.progress.write(self._folder)

    def close(self) -> None:
        """Close the shards; what was not committed is as good as not written. May be called again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def discard(self) -> None:
        """Delete shards and record."""
        self.close()
        for path in [*self._shards(TRAIN), *self._shards(HELDOUT), self._folder / PROGRESS_FILE]:
            path.unlink(missing_ok=True)

    def _sync(self, file: BufferedWriter) -> BufferedWriter:
        file.flush()
        os.fsync(file.fileno())
        return file

    def _shards(self, split: str) -> list[Path]:
        return sorted(self._folder.glob(f"{split}-*.bin"))

    def _truncate(self, split: str) -> None:
        sizes = [n * self._dtype.itemsize for n in shard_sizes(self.tokens[split], self.progress.shard_tokens)]
        paths = self._shards(split)
        for number, size in enumerate(sizes):
            path = self._folder / shard_name(split, number)
            length = path.stat().st_size if path.exists() else -1
            if length < size:
                raise DataError(f"{path} is shorter than {PROGRESS_FILE} says: delete {self._folder} and start anew")
            if length > size:
                os.truncate(path, size)
        for path in paths:
            if path.name not in {shard_name(split, number) for number in range(len(sizes))}:
                path.unlink()


def shard_name(split: str, number: int) -> str:
    """Name of a split's shard."""
    return f"{split}-{number:05d}.bin"


def shard_sizes(tokens: int, shard_tokens: int) -> list[int]:
    """Tokens in each shard of a split that has `tokens`."""
    full, rest = divmod(tokens, shard_tokens)
    return [shard_tokens] * full + [rest] * (rest > 0)


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest little-endian dtype that holds ids below `vocab_size`."""
    return np.dtype("u1" if vocab_size <= 2**8 else "<u2" if vocab_size <= 2**16 else "<u4")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def check_settings(folder: Path, recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to mix tokens that follow from different settings. Raises DataError naming the first that differs."""
    for key in [*wanted, *recorded]:
        if recorded.get(key) != wanted.get(key):
            advice = "name another folder, or delete this one"
            if key == "files":
                raise DataError(f"{folder} holds tokens of other files, or of files that have changed: {advice}")
            raise DataError(f"{folder} holds tokens of {key}={recorded.get(key)}, not {wanted.get(key)}: {advice}")
