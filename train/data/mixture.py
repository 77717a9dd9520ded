"""Several streams in fixed proportions."""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate, combinations

import numpy as np

from train.data.order import EpochShuffle
from train.data.source import Corpus, DataError, SampleStream

BLOCK = 4096  # positions; a part's share is exact in each block, so it can be no less than one in so many


class Mixture:
    """Samples of several streams, shuffled: each block of 4096 positions holds each part in exact proportion.

    A part with a quota of q positions a block gives its own positions [b·q, (b+1)·q) in block b, in order: a stream
    need not be further than what was asked for. Which of the block's positions are whose is a permutation, anew each
    block, so there is no state but the position; the last few blocks' tables are kept, 40 ms to make.
    """

    def __init__(self, streams: Sequence[SampleStream], weights: Sequence[float], seed: int) -> None:
        """Mix `streams` by `weights`, one each. Raises DataError for weights that give a stream nothing."""
        self.streams = list(streams)
        self.quotas = quotas(weights)
        self.ends = list(accumulate(self.quotas))
        self.order = EpochShuffle(BLOCK, seed)
        self._block = lru_cache(maxsize=4)(self._lay_out)

    @property
    def vocab_size(self) -> int:
        """The largest of the streams'."""
        return max(stream.vocab_size for stream in self.streams)

    def __getitem__(self, position: int) -> np.ndarray:
        """The sample at `position` >= 0 as int64 ids [sequence_length + 1]. Raises IndexError below 0."""
        part, own_position = self.locate(position)
        return self.streams[part][own_position]

    def locate(self, position: int) -> tuple[int, int]:
        """Which stream serves `position` >= 0, and from which of its own positions."""
        if position < 0:
            raise IndexError(f"position {position} is before the first sample")
        block, place = divmod(position, BLOCK)
        parts, ranks = self._block(block)
        part = int(parts[place])
        return part, block * self.quotas[part] + int(ranks[place])

    def _lay_out(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block whose it is, and how many of that part's come before it in the block."""
        slots = [self.order[position] for position in range(block * BLOCK, (block + 1) * BLOCK)]
        parts = np.searchsorted(self.ends, slots, side="right")
        ranks = np.empty(BLOCK, dtype=np.int64)
        for part, quota in enumerate(self.quotas):
            ranks[parts == part] = np.arange(quota)
        return parts, ranks


def quotas(weights: Sequence[float]) -> list[int]:
    """How many of a block's 4096 positions each weight gets, by largest remainder; of equal ones the first.

    Raises DataError for a weight that is negative or no number, or too small for one position.
    """
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"data.mixture[{index}].weight={weight}: set it above 0, or leave the part out")
    total = sum(Fraction(weight) for weight in weights)
    if not total:
        raise DataError("data.mixture has no weight above 0: set one")
    exact = [Fraction(weight) * BLOCK / total for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: BLOCK - sum(counts)]:
        counts[index] += 1
    for index, count in enumerate(counts):
        if not count:
            raise DataError(
                f"data.mixture[{index}].weight={weights[index]} is {float(exact[index] / BLOCK):.2g} of all, and a "
                f"part takes at least 1 sample in {BLOCK}: raise it, or leave the part out"
            )
    return counts


def mix(names: Sequence[str], corpora: Sequence[Corpus], weights: Sequence[float], seed: int) -> Corpus:
    """One corpus of several: training and held-out samples in the same proportions.

    `names` are for messages. A part whose separator or tokenizer is not known is taken to have the others'.
    Raises DataError if two parts are known to be tokenised differently, or for weights that give a part nothing.
    """
    for first, second in combinations(range(len(corpora)), 2):
        for what in ("tokenizer", "separator"):
            one, other = getattr(corpora[first], what), getattr(corpora[second], what)
            if None not in (one, other) and one != other:
                raise DataError(
                    f"mixture parts {names[first]!r} and {names[second]!r} are tokenised differently: {what} "
                    f"{_short(one)} in data.mixture[{first}], {_short(other)} in data.mixture[{second}]; "
                    "tokenise both in the same way"
                )
    identity = " ".join(f"{corpus.fingerprint}×{weight!r}" for corpus, weight in zip(corpora, weights, strict=True))
    return Corpus(
        train=Mixture([corpus.train for corpus in corpora], weights, seed),
        heldout=Mixture([corpus.heldout for corpus in corpora], weights, seed),
        fingerprint=sha256(identity.encode()).hexdigest(),
        separator=next((corpus.separator for corpus in corpora if corpus.separator is not None), None),
        tokenizer=next((corpus.tokenizer for corpus in corpora if corpus.tokenizer is not None), None),
    )


def _short(identity: int | str) -> str:
    """An id, "bytes", or the beginning of a SHA-256."""
    return str(identity)[:12]
