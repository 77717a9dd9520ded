"""Endless streams over a source that ends."""

import numpy as np

from train.data.order import EpochShuffle
from train.data.source import TokenSource


class ShuffledStream:
    """Every sample of `source` once an epoch, in an order of its own each epoch."""

    def __init__(self, source: TokenSource, seed: int) -> None:
        """Order by `seed`. Raises ValueError if the source has no sample."""
        self.source = source
        self.order = EpochShuffle(len(source), seed)

    @property
    def vocab_size(self) -> int:
        """The source's."""
        return self.source.vocab_size

    def __getitem__(self, position: int) -> np.ndarray:
        """The sample at `position` >= 0 as int64 ids [sequence_length + 1]. Raises IndexError below 0."""
        return self.source.sample(self.order[position])


class InOrder:
    """The samples of `source` one after the other, and again from the first."""

    def __init__(self, source: TokenSource) -> None:
        """Raises ValueError if the source has no sample."""
        if len(source) < 1:
            raise ValueError(f"cannot order {len(source)} samples")
        self.source = source

    @property
    def vocab_size(self) -> int:
        """The source's."""
        return self.source.vocab_size

    def __getitem__(self, position: int) -> np.ndarray:
        """The sample at `position` >= 0 as int64 ids [sequence_length + 1]. Raises IndexError below 0."""
        if position < 0:
            raise IndexError(f"position {position} is before the first sample")
        return self.source.sample(position % len(self.source))
