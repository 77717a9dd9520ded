"""Mixtures: exact proportions, every position of every part once, and parts that do not fit together."""

from collections import Counter

import numpy as np
import pytest

from train.data.mixture import BLOCK, Mixture, mix, quotas
from train.data.source import Corpus, DataError


class Positions:
    """Sample p is [part, p]."""

    def __init__(self, part: int, vocab_size: int = 10) -> None:
        self.part = part
        self.vocab_size = vocab_size

    def __getitem__(self, position: int) -> np.ndarray:
        return np.array([self.part, position])


def corpus(part: int, separator: int | None = 0, tokenizer: str | None = "bytes", fingerprint: str = "f") -> Corpus:
    return Corpus(Positions(part), Positions(part + 10), f"{fingerprint}{part}", separator, tokenizer)


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 1.0], [0.7, 0.2, 0.1], [1.0, 4095.0], [1e-300, 3e-300], [5.0, 1.0, 1.0]]
)
def test_each_block_holds_each_part_in_proportion_and_each_position_of_a_part_comes_once(weights: list[float]) -> None:
    mixture = Mixture([Positions(part) for part in range(len(weights))], weights, seed=7)
    seen: list[list[int]] = [[] for _ in weights]
    for block in range(3):
        samples = [mixture[block * BLOCK + i] for i in range(BLOCK)]
        counts = Counter(int(part) for part, _ in samples)
        shares = [counts[part] / BLOCK for part in range(len(weights))]
        np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=1 / BLOCK)
        assert [counts[part] for part in range(len(weights))] == quotas(weights)
        for part, position in samples:
            seen[part].append(int(position))
        for part, quota in enumerate(quotas(weights)):  # none left out, none twice, and in order
            assert seen[part] == list(range((block + 1) * quota))


def test_the_largest_remainders_get_what_is_left() -> None:
    assert quotas([1, 1, 1]) == [1366, 1365, 1365]
    assert quotas([0.5, 0.25, 0.25]) == [2048, 1024, 1024]
    assert quotas([1, 2]) == [1365, 2731]


def test_parts_are_shuffled_anew_each_block_and_by_seed() -> None:
    def parts(seed: int, block: int) -> list[int]:
        mixture = Mixture([Positions(0), Positions(1)], [1, 1], seed)
        return [int(mixture[block * BLOCK + i][0]) for i in range(BLOCK)]

    first = parts(0, 0)
    assert first != parts(0, 1)
    assert first != parts(1, 0)
    assert first == parts(0, 0)
    # Spread over the block: no window of 64 is far from its 32.
    assert all(10 < sum(first[i : i + 64]) < 54 for i in range(0, BLOCK, 64))


def test_any_position_at_once_and_none_before_the_first() -> None:
    mixture = Mixture([Positions(0), Positions(1)], [3, 1], seed=0)
    part, position = mixture[2**50]
    assert 2**50 // BLOCK * [3072, 1024][part] <= position < (2**50 // BLOCK + 1) * [3072, 1024][part]
    with pytest.raises(IndexError, match="before the first"):
        mixture[-1]


def test_order_never_changes() -> None:
    """A run resumed by a later version must go on where it was."""
    mixture = Mixture([Positions(0), Positions(1)], [3, 1], seed=0)
    assert [mixture.locate(position) for position in (0, 1, 2, 3, 4096, 10**6)] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 3072),
        (0, 750006),
    ]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            [1, 0.0001],
            r"data\.mixture\[1\]\.weight=0\.0001 is 0\.0001 of all, and a part takes at least 1 sample in 4096",
        ),
        ([0, 1], r"data\.mixture\[0\]\.weight=0 is 0 of all"),
        ([1, -1], r"data\.mixture\[1\]\.weight=-1: set it above 0, or leave the part out"),
        ([1, float("nan")], r"data\.mixture\[1\]\.weight=nan: set it above 0"),
        ([float("inf"), 1], r"data\.mixture\[0\]\.weight=inf: set it above 0"),
        ([0, 0], r"data\.mixture has no weight above 0: set one"),
        ([], r"data\.mixture has no weight above 0"),
    ],
)
def test_weights_that_give_a_part_nothing(weights: list[float], said: str) -> None:
    with pytest.raises(DataError, match=f"^{said}"):
        Mixture([Positions(part) for part in range(len(weights))], weights, seed=0)


def test_a_mixed_corpus() -> None:
    mixed = mix(["a", "b"], [corpus(0, None, None), corpus(1, 3, "bytes")], [1, 1], seed=5)
    assert (mixed.separator, mixed.tokenizer) == (3, "bytes")  # what is known of any
    train, heldout = (Counter(int(stream[i][0]) for i in range(BLOCK)) for stream in (mixed.train, mixed.heldout))
    assert train == {0: BLOCK // 2, 1: BLOCK // 2}
    assert heldout == {10: BLOCK // 2, 11: BLOCK // 2}
    assert Mixture([Positions(0, 7), Positions(1, 900)], [1, 1], 0).vocab_size == 900


def test_the_fingerprint_follows_parts_and_weights() -> None:
    def of(weights: list[float], **changes: str) -> str:
        return mix(["a", "b"], [corpus(0), corpus(1, **changes)], weights, seed=0).fingerprint

    same = of([1.0, 2.0])
    assert len(bytes.fromhex(same)) == 32
    assert same == of([1.0, 2.0])
    assert len({same, of([2.0, 1.0]), of([1.0, 2.5]), of([1.0, 2.0], fingerprint="g")}) == 4


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({}, {"tokenizer": "3fa" * 20}, r"tokenizer bytes in data.mixture\[0\], 3fa3fa3fa3fa in data.mixture\[1\]"),
        ({}, {"separator": 2}, r"separator 0 in data.mixture\[0\], 2 in data.mixture\[1\]"),
        (
            {"tokenizer": None},
            {"tokenizer": "e" * 64, "separator": 2},
            r"separator 0 in data.mixture\[0\], 2 in data.mixture\[1\]",
        ),
    ],
)
def test_parts_that_are_tokenised_differently(one: dict, other: dict, said: str) -> None:
    with pytest.raises(DataError, match=f"^mixture parts 'a' and 'b' are tokenised differently: {said}; tokenise both"):
        mix(["a", "b"], [corpus(0, **one), corpus(1, **other)], [1, 1], seed=0)
    with pytest.raises(DataError, match="parts 'a' and 'c' are"):
        mix(["a", "b", "c"], [corpus(0, **one), corpus(1, None, None), corpus(2, **other)], [1, 1, 1], seed=0)
