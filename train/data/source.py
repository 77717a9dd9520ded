"""What a corpus is to the rest of the program: two sources of samples and a fingerprint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.config import ConfigError


class DataError(ConfigError):
    """The data cannot serve this run; the message says what to change."""


class TokenSource(Protocol):
    """Samples of token ids by index. Reading one has no side effect, so any rank may read any sample at any time."""

    @property
    def vocab_size(self) -> int:
        """Size of the smallest vocabulary that holds every id."""

    def __len__(self) -> int:
        """Number of samples."""

    def sample(self, index: int) -> np.ndarray:
        """Sample `index` as int64 ids [sequence_length + 1]: inputs are all but the last, targets all but the first.

        Raises IndexError unless 0 <= index < len(self).
        """


@dataclass(frozen=True)
class Corpus:
    """Two sources that share no text, and what identifies them."""

    train: TokenSource
    heldout: TokenSource

    fingerprint: str
    """SHA-256, in hex, of what was read: equal on two ranks, or before and after a resume, iff the text is."""


def check_same_corpus(fingerprints: Sequence[str]) -> None:
    """Refuse ranks that read different text, as machines with different Python versions do.

    Raises:
        DataError: naming the first rank that differs from rank 0.
    """
    for rank, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise DataError(
                f"rank {rank} reads another corpus than rank 0 (sha256 {fingerprint[:12]} and {fingerprints[0][:12]}): "
                "give every machine the same Python version, or choose data.source=synthetic"
            )
