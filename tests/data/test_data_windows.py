"""Windows: each id a target once, no window over two shards, no id outside the vocabulary."""

from pathlib import Path

import numpy as np
import pytest

from train.data.source import DataError
from train.data.windows import TokenWindows, first_outside

DTYPES = ["u1", "<u2", ">u2", "<u4", "<i4", "<i8", "<u8", "<i2"]


@pytest.mark.parametrize("lengths", [[11], [11, 4, 3, 12, 1, 0, 7]])
@pytest.mark.parametrize("sequence_length", [1, 3])
def test_every_id_but_a_shards_first_is_a_target_once(lengths: list[int], sequence_length: int) -> None:
    ids = np.arange(sum(lengths), dtype=np.uint16)
    shards = np.split(ids, np.cumsum(lengths)[:-1])
    windows = TokenWindows(shards, sequence_length, 100, "shards")
    samples = [windows.sample(i) for i in range(len(windows))]
    assert all(sample.shape == (sequence_length + 1,) and sample.dtype == np.int64 for sample in samples)
    # Ids count upward, so a window over two shards would show as a target that begins one.
    targets = [int(target) for sample in samples for target in sample[1:]]
    whole = [(len(shard) - 1) // sequence_length * sequence_length for shard in shards]
    assert targets == [int(i) for shard, n in zip(shards, whole, strict=True) for i in shard[1 : max(n, 0) + 1]]
    assert all((np.diff(sample) == 1).all() for sample in samples)
    for outside in (-1, len(windows)):
        with pytest.raises(IndexError, match=f"sample {outside} of {len(windows)}"):
            windows.sample(outside)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
def test_any_integers_in_memory_or_mapped(dtype: str, mapped: bool, tmp_path: Path) -> None:
    ids = np.arange(100, dtype=dtype)
    if mapped:
        ids.tofile(tmp_path / "ids")
        ids = np.memmap(tmp_path / "ids", dtype, mode="r")
    sample = TokenWindows([ids], 10, 100, "ids").sample(2)
    assert sample.dtype == np.int64
    assert sample.dtype.isnative
    assert sample.tolist() == list(range(20, 31))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_id_outside_the_vocabulary_is_found(dtype: str) -> None:
    ids = np.zeros(21, dtype=dtype)
    ids[14] = 99
    windows = TokenWindows([ids], 5, 99, "a.npy")
    assert windows.sample(1).tolist() == [0] * 6
    said = r"^a\.npy, sample 2: id 99 is outside the vocabulary of 99: set model\.vocab_size to at least 100,"
    with pytest.raises(DataError, match=said):
        windows.sample(2)


@pytest.mark.parametrize("dtype", ["i1", "<i2", ">i2", "<i4", "<i8"])
@pytest.mark.parametrize("vocab_size", [50, 100_000, 2**40])
def test_a_negative_id_is_found_whatever_the_vocabulary(dtype: str, vocab_size: int) -> None:
    ids = np.array([1, 2, -1, -100], dtype=dtype)
    assert first_outside(ids, vocab_size) == 2
    with pytest.raises(DataError, match=r"id -1 is outside the vocabulary of .* no id is negative; write the tokens"):
        TokenWindows([ids], 3, vocab_size, "a.npy").sample(0)


def test_ids_that_cannot_be_outside_are_not_looked_at() -> None:
    assert first_outside(np.array([255], dtype=np.uint8), 256) is None
    assert first_outside(np.array([254, 255], dtype=np.uint8), 255) == 1
    assert first_outside(np.array([], dtype=np.int32), 3) is None


def test_too_little_text_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^a\.bin has 4 tokens, and one sample takes 5: lower data\.sequence_length, or"
    ):
        TokenWindows([np.zeros(4, np.uint8)], 4, 256, "a.bin")
    with pytest.raises(DataError, match="has 4 tokens in its longest shard"):
        TokenWindows([np.zeros(n, np.uint8) for n in (3, 4)], 4, 256, "a folder")
    with pytest.raises(DataError, match="has 0 tokens, and"):
        TokenWindows([], 4, 256, "a folder")
    assert len(TokenWindows([np.zeros(5, np.uint8)], 4, 256, "a.bin")) == 1
