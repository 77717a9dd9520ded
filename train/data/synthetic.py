"""Random tokens without end: a benchmark's input, which no model can overfit and no disk can slow."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from train.data.source import Corpus, DataError
from train.data.stream import InOrder, ShuffledStream

SAMPLES = 2**40  # no run reaches the end; a round number so that it is known to be a choice
TRAIN, HELDOUT = 0, 1


@dataclass(frozen=True)
class RandomTokens:
    """Uniform ids; sample i is a pure function of (seed, split, i), the same for every machine and numpy version."""

    sequence_length: int
    vocab_size: int
    seed: int
    split: int

    def __len__(self) -> int:
        """2**40 samples."""
        return SAMPLES

    def sample(self, index: int) -> np.ndarray:
        """Sample `index` as int64 [sequence_length + 1]. Raises IndexError unless 0 <= index < 2**40."""
        if not 0 <= index < SAMPLES:
            raise IndexError(f"sample {index} of {SAMPLES}")
        length = self.sequence_length + 1
        # Philox counts upward from the first counter word; the index in the second keeps samples 2**64 draws apart.
        philox = np.random.Philox(
            key=np.array([self.seed % 2**64, self.split], dtype=np.uint64),
            counter=np.array([0, index, 0, 0], dtype=np.uint64),
        )
        # Raw bits, as numpy may change how its distributions use them; little-endian, so the halves come in one order.
        words = philox.random_raw((length + 1) // 2).astype("<u8").view("<u4")[:length]
        # Multiply-shift (Lemire 2019) maps 32 bits into [0, vocab_size); its bias is below vocab_size / 2**32.
        return ((words.astype(np.uint64) * np.uint64(self.vocab_size)) >> np.uint64(32)).astype(np.int64)


def open_synthetic(sequence_length: int, vocab_size: int, seed: int) -> Corpus:
    """Train and held-out random tokens over all of the vocabulary, drawn with `seed`.

    The fingerprint is that of the parameters, which decide every token.
    Raises DataError if the vocabulary does not fit in 1 to 2**32 ids.
    """
    if not 1 <= vocab_size <= 2**32:
        raise DataError(f"synthetic tokens cannot fill a vocabulary of {vocab_size}: set vocab_size to 1 … 2**32")
    parameters = f"synthetic sequence_length={sequence_length} vocab_size={vocab_size} seed={seed}"
    return Corpus(
        train=ShuffledStream(RandomTokens(sequence_length, vocab_size, seed, TRAIN), seed),
        heldout=InOrder(RandomTokens(sequence_length, vocab_size, seed, HELDOUT)),
        fingerprint=sha256(parameters.encode()).hexdigest(),
        separator=None,
        tokenizer=None,
    )
