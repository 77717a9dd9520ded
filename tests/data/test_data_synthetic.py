"""Random tokens: in range, even, and a pure function of (seed, split, index)."""

import numpy as np
import pytest

from train.data.order import EpochShuffle
from train.data.source import DataError
from train.data.synthetic import HELDOUT, TRAIN, RandomTokens, open_synthetic


def test_tokens_never_change() -> None:
    """Known values: another numpy or another machine must draw the same."""
    train, heldout = (RandomTokens(4, vocab_size=100, seed=0, split=split) for split in (TRAIN, HELDOUT))
    assert train.sample(0).tolist() == [3, 1, 61, 24, 36]
    assert train.sample(2**40 - 1).tolist() == [37, 41, 99, 44, 89]
    assert heldout.sample(0).tolist() == [97, 81, 29, 75, 6]
    corpus = open_synthetic(sequence_length=4, vocab_size=100, seed=0)
    np.testing.assert_array_equal(corpus.train[5], train.sample(EpochShuffle(2**40, seed=0)[5]))
    np.testing.assert_array_equal(corpus.heldout[5], heldout.sample(5))
    assert (corpus.separator, corpus.tokenizer) == (None, None)


def test_sample_depends_on_its_index_alone() -> None:
    source = RandomTokens(sequence_length=15, vocab_size=1000, seed=3, split=TRAIN)
    forward = [source.sample(i) for i in range(5)]
    backward = [source.sample(i) for i in reversed(range(5))]
    np.testing.assert_array_equal(forward, backward[::-1])
    assert len({tuple(tokens) for tokens in forward}) == 5


def test_seeds_and_splits_differ() -> None:
    corpora = [open_synthetic(15, 1000, seed) for seed in (0, 1, -1, 2**63)]
    samples = {tuple(stream[7]) for corpus in corpora for stream in (corpus.train, corpus.heldout)}
    assert len(samples) == 8
    assert len({corpus.fingerprint for corpus in corpora}) == 4


@pytest.mark.parametrize("vocab_size", [1, 7, 100])
def test_tokens_are_even_over_the_vocabulary(vocab_size: int) -> None:
    tokens = RandomTokens(sequence_length=99_999, vocab_size=vocab_size, seed=0, split=0).sample(0)
    assert tokens.dtype == np.int64
    assert tokens.shape == (100_000,)
    counts = np.bincount(tokens)
    assert len(counts) == vocab_size
    expected = 100_000 / vocab_size
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_ids_reach_the_end_of_a_large_vocabulary() -> None:
    tokens = RandomTokens(sequence_length=9999, vocab_size=2**32, seed=0, split=0).sample(0)
    assert 0 <= tokens.min() < 2**22
    assert 2**32 - 2**22 < tokens.max() < 2**32


def test_refuses_what_is_outside() -> None:
    source = RandomTokens(4, 100, seed=0, split=TRAIN)
    for outside in (-1, len(source)):
        with pytest.raises(IndexError, match=f"sample {outside} of"):
            source.sample(outside)
    for vocab_size in (0, 2**32 + 1):
        with pytest.raises(DataError, match="set vocab_size to 1"):
            open_synthetic(4, vocab_size, 0)
