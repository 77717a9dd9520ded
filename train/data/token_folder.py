"""A folder of tokens, as `switchyard tokenize` leaves it.

tokens.json                             what the rest is; written last, so that a folder that has it is whole
train-00000.bin, heldout-00000.bin, …   ids, little-endian, in uint8, uint16 or uint32
lock                                    empty; who writes the folder holds it
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from train.data.atomic_json import read_json, write_json
from train.data.source import DataError
from train.data.token_writer import (
    HELDOUT,
    PROGRESS_FILE,
    SPLITS,
    TRAIN,
    Progress,
    hash_file,
    id_dtype,
    shard_name,
    shard_sizes,
)

FORMAT = 1
TOKENS_FILE = "tokens.json"


@dataclass(frozen=True, eq=False)
class TokenFolder:
    """Tokens on disk, memory-mapped."""

    train: list[np.ndarray]
    """Shards, each a read-only memmap [tokens]."""
    heldout: list[np.ndarray]
    """The same, of texts that are not in `train`."""
    vocab_size: int
    """One more than the largest id that the tokenizer has."""
    separator: int
    """The id that ends a document."""
    tokenizer: str
    """"bytes", or the SHA-256 of the tokenizer.json."""
    fingerprint: str
    """SHA-256 of the tokens and of what they mean: equal iff they are, on whatever machine."""
    documents: int
    settings: dict[str, Any]
    """What the tokens were made with."""

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(map(len, self.train + self.heldout))

    @classmethod
    def open(cls, path: Path) -> "TokenFolder":
        """Map the folder at `path`; of the shards only the sizes are looked at.

        Raises:
            DataError: if it is not such a folder, unfinished, damaged, or of a newer version.
        """
        if not (path / TOKENS_FILE).is_file():
            if (path / PROGRESS_FILE).is_file():
                raise DataError(f"{path} is unfinished: run the same switchyard tokenize again, it goes on")
            raise DataError(f"{path} holds no {TOKENS_FILE}: name a folder that switchyard tokenize wrote")
        described = read_json(path / TOKENS_FILE)
        if described is None or not isinstance(described.get("format"), int):
            raise DataError(f"{path / TOKENS_FILE} cannot be read: delete {path} and tokenise again")
        if described["format"] > FORMAT:
            raise DataError(f"{path} has format {described['format']}, of a newer version of switchyard: update it")
        try:
            shards = {split: [_map(path, shard, described) for shard in described["shards"][split]] for split in SPLITS}
            names = ("vocab_size", "separator", "tokenizer", "fingerprint", "documents", "settings")
            return cls(shards[TRAIN], shards[HELDOUT], **{name: described[name] for name in names})
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{path} is damaged ({error}): delete it and tokenise again") from error


def describe(folder: Path, progress: Progress, vocab_size: int, separator: int, tokenizer: str, documents: int) -> None:
    """Write tokens.json over what `progress` says is in `folder`, which makes it a TokenFolder. Raises OSError."""
    meaning = {"format": FORMAT, "vocab_size": vocab_size, "separator": separator, "tokenizer": tokenizer}
    shards = {
        split: [
            {"file": shard_name(split, number), "tokens": size, "sha256": hash_file(folder / shard_name(split, number))}
            for number, size in enumerate(shard_sizes(progress.tokens[split], progress.shard_tokens))
        ]
        for split in SPLITS
    }
    content = meaning | {"dtype": id_dtype(vocab_size).name, "shards": shards}
    totals = {"documents": documents, "tokens": progress.tokens, "settings": progress.settings}
    fingerprint = sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(folder / TOKENS_FILE, content | totals | {"fingerprint": fingerprint})


def _map(folder: Path, shard: Mapping[str, Any], described: Mapping[str, Any]) -> np.ndarray:
    path, dtype = folder / str(shard["file"]), np.dtype(described["dtype"]).newbyteorder("<")
    if (size := path.stat().st_size) != shard["tokens"] * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes and should have {shard['tokens'] * dtype.itemsize}")
    return np.memmap(path, dtype, mode="r")
