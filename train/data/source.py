"""What a corpus is to the rest of the program: two endless streams of samples, and what identifies them."""

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
        """Size of a vocabulary that holds every id."""

    def __len__(self) -> int:
        """Number of samples."""

    def sample(self, index: int) -> np.ndarray:
        """Sample `index` as int64 ids [sequence_length + 1]: inputs are all but the last, targets all but the first.

        Raises IndexError unless 0 <= index < len(self).
        """


class SampleStream(Protocol):
    """Samples by position in an endless stream: a pure function of the position, so that any rank may read any of
    them at any time, and a run that resumes needs to know no more than how far it was."""

    @property
    def vocab_size(self) -> int:
        """Size of a vocabulary that holds every id."""

    def __getitem__(self, position: int) -> np.ndarray:
        """The sample at `position` >= 0 as int64 ids [sequence_length + 1].

        Raises IndexError below 0, and DataError if what is read there is wrong.
        """


@dataclass(frozen=True)
class Corpus:
    """Two streams that share no text, and what identifies them."""

    train: SampleStream
    heldout: SampleStream

    fingerprint: str
    """SHA-256, in hex, of what is read: equal on two ranks, or before and after a resume, iff the text is."""
    separator: int | None
    """The id that ends a document; None: where documents end is not known."""
    tokenizer: str | None
    """What made ids of text: "bytes", the SHA-256 of a tokenizer.json in hex, or None where that is not known."""


def check_same_corpus(fingerprints: Sequence[str]) -> None:
    """Refuse ranks that read different text, as machines with different Python versions or files do.

    Raises:
        DataError: naming the first rank that differs from rank 0.
    """
    for rank, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise DataError(
                f"rank {rank} reads another corpus than rank 0 (sha256 {fingerprint[:12]} and {fingerprints[0][:12]}): "
                "give every machine the same files (data=stdlib: the same Python version), or choose data=synthetic"
            )
