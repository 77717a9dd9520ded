"""Tokens cut into samples."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from train.data.source import DataError


class TokenWindows:
    """Shards of tokens cut into windows: sample i of a shard is its ids [i·S, i·S + S + 1), so that every id but the
    shard's first is a target once. A window lies in one shard; what is left at a shard's end is not used.
    """

    def __init__(self, shards: Sequence[np.ndarray], sequence_length: int, vocab_size: int, name: str) -> None:
        """Cut `shards`, 1-D arrays of integers, in memory or memory-mapped.

        Ids are to be below `vocab_size`, and each window is looked through when it is read: a GPU's embedding that is
        given another id dies without saying which. `name` says in messages what the shards are.
        Raises DataError if no shard holds a window.
        """
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.name = name
        # Plain arrays: a slice of np.memmap costs several times what reading the ids does.
        self.shards = [np.asarray(shard) for shard in shards]
        counts = [max(0, len(shard) - 1) // sequence_length for shard in self.shards]
        self.ends = list(accumulate(counts))
        if not sum(counts):
            longest = max((len(shard) for shard in self.shards), default=0)
            of_shards = " in its longest shard" if len(shards) > 1 else ""
            raise DataError(
                f"{name} has {longest} tokens{of_shards}, and one sample takes {sequence_length + 1}: "
                "lower data.sequence_length, or give it more text"
            )

    def __len__(self) -> int:
        """Number of windows."""
        return self.ends[-1]

    def sample(self, index: int) -> np.ndarray:
        """Window `index` as int64 [sequence_length + 1].

        Raises IndexError outside the windows, and DataError for an id that is outside the vocabulary.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect_right(self.ends, index)
        start = (index - (self.ends[shard - 1] if shard else 0)) * self.sequence_length
        ids = self.shards[shard][start : start + self.sequence_length + 1]
        if (wrong := first_outside(ids, self.vocab_size)) is not None:
            raise DataError(
                f"{self.name}, sample {index}: id {ids[wrong]} is outside the vocabulary of {self.vocab_size}: "
                f"{advice(int(ids[wrong]))}"
            )
        return ids.astype(np.int64)


def first_outside(ids: np.ndarray, vocab_size: int) -> int | None:
    """Where in `ids` the first one is that is not in [0, vocab_size); None if all are."""
    holds = np.iinfo(ids.dtype)
    if holds.min == 0 and holds.max < vocab_size:
        return None
    # As unsigned integers negative ids are the largest, and one look finds both kinds.
    unsigned = ids.view(ids.dtype.str.replace("i", "u"))
    limit = min(vocab_size, holds.max + 1)
    return int((unsigned >= limit).argmax()) if unsigned.max(initial=0) >= limit else None


def advice(wrong_id: int) -> str:
    """What to change when `wrong_id` was found."""
    if wrong_id < 0:
        return "no id is negative; write the tokens again"
    return f"set model.vocab_size to at least {wrong_id + 1}, if these are the tokens you mean"
