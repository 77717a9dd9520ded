"""Endless streams over a finite source."""

import numpy as np
import pytest

from train.data.order import EpochShuffle
from train.data.stream import InOrder, ShuffledStream


class Few:
    """Sample i is [i, i]."""

    vocab_size = 9

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def sample(self, index: int) -> np.ndarray:
        assert 0 <= index < self.samples
        return np.array([index, index])


def test_shuffled_takes_each_sample_once_an_epoch_in_the_order_of_the_seed() -> None:
    stream = ShuffledStream(Few(7), seed=3)
    order = [int(stream[position][0]) for position in range(21)]
    assert order == [EpochShuffle(7, seed=3)[position] for position in range(21)]
    assert [sorted(order[epoch * 7 : epoch * 7 + 7]) for epoch in range(3)] == [list(range(7))] * 3
    assert stream.vocab_size == 9


def test_in_order_begins_again() -> None:
    stream = InOrder(Few(3))
    assert [int(stream[position][0]) for position in (0, 1, 2, 3, 3000)] == [0, 1, 2, 0, 0]
    assert stream.vocab_size == 9


def test_nothing_comes_of_nothing_or_before_the_first() -> None:
    for stream in (InOrder(Few(3)), ShuffledStream(Few(3), seed=0)):
        with pytest.raises(IndexError, match="position -1 is before the first"):
            stream[-1]
    with pytest.raises(ValueError, match="cannot order 0 samples"):
        InOrder(Few(0))
    with pytest.raises(ValueError, match="cannot order 0 samples"):
        ShuffledStream(Few(0), seed=0)
