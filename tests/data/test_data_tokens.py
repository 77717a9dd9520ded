"""Token files as they come: read, split, fingerprinted; and every bad one with the line that answers it."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.data import tokens
from train.data.config import DataConfig, DataSource, DocumentUnit, MixturePart, TokenDtype
from train.data.source import Corpus, DataError
from train.data.stream import InOrder, ShuffledStream
from train.data.text import open_text
from train.data.tokens import open_tokens

VOCABULARY = 1000
IDS = (np.arange(1000) * 7 % VOCABULARY).astype(np.uint16)


def config(path: Path, **changes: Any) -> DataConfig:
    return DataConfig(source=DataSource.tokens, path=str(path), **({"sequence_length": 9} | changes))


def opened(path: Path, vocab_size: int = VOCABULARY, **changes: Any) -> Corpus:
    data = config(path, **changes)
    data.check()
    return open_tokens(data, data, vocab_size, seed=3)


def texts(corpus: Corpus) -> list[list[int]]:
    """The ids that each split's windows hold, in the file's order."""
    assert isinstance(corpus.train, ShuffledStream)
    assert isinstance(corpus.heldout, InOrder)
    sources = (corpus.train.source, corpus.heldout.source)
    windows = [[source.sample(i) for i in range(len(source))] for source in sources]
    return [[int(first[0][0]), *(int(i) for window in first for i in window[1:])] for first in windows]


def write(folder: Path, name: str, ids: np.ndarray) -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, ids)
    else:
        ids.tofile(path)
    return path


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<u4", "<i4", "<i8"])
def test_npy_of_any_integers(dtype: str, tmp_path: Path) -> None:
    ids = (IDS % 251).astype(dtype)
    corpus = opened(write(tmp_path, "a.npy", ids))
    # 5 % of 1000 is held out, at the end; each split is cut into whole windows of 9, and one id more.
    assert texts(corpus) == [ids[:946].tolist(), ids[950:996].tolist()]
    assert (corpus.separator, corpus.tokenizer, corpus.train.vocab_size) == (None, None, VOCABULARY)


@pytest.mark.parametrize("dtype", TokenDtype)
def test_bin_of_a_given_type(dtype: TokenDtype, tmp_path: Path) -> None:
    ids = (IDS % 251).astype(np.dtype(dtype.value).newbyteorder("<"))
    corpus = opened(write(tmp_path, "a.bin", ids), dtype=dtype, heldout_fraction=0.5)
    assert texts(corpus) == [ids[:496].tolist(), ids[500:996].tolist()]


def test_the_seed_orders_training_samples_only(tmp_path: Path) -> None:
    data = config(write(tmp_path, "a.npy", IDS))
    one, same, other = (open_tokens(data, data, VOCABULARY, seed) for seed in (0, 0, 1))
    firsts = [[int(corpus.train[i][0]) for i in range(50)] for corpus in (one, same, other)]
    assert firsts[0] == firsts[1] != firsts[2]
    assert [one.heldout[i].tolist() for i in range(5)] == [other.heldout[i].tolist() for i in range(5)]
    assert one.fingerprint == other.fingerprint


def test_a_bare_files_end_of_document_is_an_id(tmp_path: Path) -> None:
    path = write(tmp_path, "a.bin", IDS)
    assert opened(path, end_of_document="0").separator == 0
    assert opened(path, end_of_document="999").separator == 999
    for typed in ("<eos>", "-1", "1000", "1.5", "²"):
        with pytest.raises(
            DataError, match=f"^data.end_of_document={typed}: .*a.bin is tokens .* an id below 1000, or"
        ):
            opened(path, end_of_document=typed)


def test_the_fingerprint_follows_content_size_and_type(tmp_path: Path) -> None:
    changed = IDS.copy()
    changed[500] += 1
    variants = [IDS, changed, IDS[:-1], IDS.astype(np.uint32)]
    prints = [opened(write(tmp_path, "a.npy", ids)).fingerprint for ids in variants]
    assert len(set(prints)) == 4
    assert opened(write(tmp_path, "b.bin", IDS)).fingerprint == prints[0]  # it is the tokens', not the file's
    alike = [np.zeros(3 * 2**20, np.uint16), np.zeros(3 * 2**20 + 1, np.uint16), np.zeros(3 * 2**19, np.uint32)]
    assert len({opened(write(tmp_path, "a.npy", ids)).fingerprint for ids in alike}) == 3


def test_of_a_large_file_64_blocks_spread_evenly_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 MiB: more than the 4 MiB of 64 blocks of 64 KiB. The scan's limit of 256 MiB is lowered to have it sampled."""
    ids = np.zeros(3 * 2**20, dtype=np.uint16)
    path = write(tmp_path, "a.bin", ids)
    before = opened(path).fingerprint
    step = (len(ids) - 32 * 1024) / 63
    inside = [0, 32 * 1024 - 1, round(step), round(30 * step) + 5, len(ids) - 1]
    outside = [32 * 1024, round(step) - 1, round(30 * step) + 32 * 1024]
    for where in inside + outside:
        ids[where] = 5000
        write(tmp_path, "a.bin", ids)
        assert (opened(path, vocab_size=6000).fingerprint != before) == (where in inside), where
        with pytest.raises(DataError, match=f"token {where} is 5000"):  # below the limit all is looked through
            opened(path)
        with monkeypatch.context() as patch:
            patch.setattr(tokens, "SCANNED_WHOLE", 2**20)
            if where in inside:
                with pytest.raises(DataError, match=f"token {where} is 5000"):
                    opened(path)
            else:
                opened(path)
        ids[where] = 0


def test_an_id_that_the_scan_did_not_see_is_refused_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "SCANNED_WHOLE", 2**20)
    ids = np.zeros(3 * 2**20, dtype=np.uint16)
    ids[32 * 1024] = 5000
    corpus = opened(write(tmp_path, "a.bin", ids), sequence_length=2**15)
    said = r"a\.bin \(what data\.heldout_fraction=0\.05 leaves\), sample \d+: id 5000 is outside the vocabulary of 1000"
    with pytest.raises(DataError, match=said):
        list(map(corpus.train.__getitem__, range(100)))


def empty(path: Path) -> None:
    path.touch()


def garbage(path: Path) -> None:
    path.write_bytes(b"not numpy's " * 40)


def pickled(path: Path) -> None:
    np.save(path, np.array([{}]), allow_pickle=True)


def truncated(path: Path) -> None:
    np.save(path, IDS)
    path.write_bytes(path.read_bytes()[:-1])


def cut_header(path: Path) -> None:
    np.save(path, IDS)
    path.write_bytes(path.read_bytes()[:50])


def odd_size(path: Path) -> None:
    path.write_bytes(b"abc")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def saved(ids: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, ids)


NOT_NPY = "is not a whole .npy file of numbers: write it again with numpy.save"
ONE_ROW = "save the ids as one row of integers, as uint16 or uint32"
BAD = [
    ("a.bin", None, {}, "a.bin does not exist: set data.path to a .bin or .npy file, or a tokenised folder"),
    ("a.bin", empty, {}, "a.bin is empty: write tokens to it, or name another file in data.path"),
    ("a.npy", empty, {}, "a.npy is empty"),
    ("a.txt", garbage, {}, "a.txt is no .bin or .npy file and no tokenised folder: name one of these in data.path"),
    ("a.bin", pipe, {}, "a.bin is no .bin or .npy file"),  # and nobody waits for its other end
    ("a.npy", garbage, {}, NOT_NPY),
    ("a.npy", pickled, {}, NOT_NPY),
    ("a.npy", truncated, {}, NOT_NPY),
    ("a.npy", cut_header, {}, NOT_NPY),
    ("a.npy", saved(np.zeros(100)), {}, f"a.npy holds float64 of shape (100,): {ONE_ROW}"),
    ("a.npy", saved(np.zeros(100, bool)), {}, f"a.npy holds bool of shape (100,): {ONE_ROW}"),
    ("a.npy", saved(np.zeros((10, 10), np.uint16)), {}, f"a.npy holds uint16 of shape (10, 10): {ONE_ROW}"),
    ("a.npy", saved(np.uint16(3)), {}, f"a.npy holds uint16 of shape (): {ONE_ROW}"),
    ("a.npy", saved(IDS), {"dtype": TokenDtype.uint32}, "data.dtype=uint32: "),
    ("a.bin", odd_size, {}, "a.bin has 3 bytes, not a multiple of uint16's 2: set data.dtype to the type that its ids"),
    (
        "a.npy",
        saved(IDS[:9]),
        {},
        "a.npy (what data.heldout_fraction=0.05 leaves) has 9 tokens, and one sample takes 10",
    ),
    (
        "a.npy",
        saved(IDS[:100]),
        {},
        "a.npy (the end, data.heldout_fraction=0.05) has 5 tokens, and one sample takes 10",
    ),
    ("a.npy", saved(np.array([], np.uint16)), {}, "has 0 tokens"),
    (
        "a.npy",
        saved(IDS + 1),
        {},
        "a.npy: token 857 is 1000, outside the vocabulary of 1000: set model.vocab_size to at",
    ),
    (
        "a.npy",
        saved(-IDS.astype(np.int32)),
        {},
        "a.npy: token 1 is -7, outside the vocabulary of 1000: no id is negative",
    ),
    ("a.bin", garbage, {}, "to at least 30063, if these are the tokens you mean (data.dtype, if they were written in"),
]


@pytest.mark.parametrize(("name", "make", "changes", "said"), BAD)
def test_a_bad_file(
    name: str, make: Callable[[Path], None] | None, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if make:
        make(tmp_path / name)
    message = refusal(tmp_path / name, **changes)
    assert said in message
    assert str(tmp_path / name) in message


@pytest.mark.parametrize("typed", ["~nobody-here/a.bin", "x" * 300 + ".bin"])
def test_a_path_that_cannot_be_looked_at(typed: str) -> None:
    assert refusal(Path(typed)).startswith(f"data.path={typed} cannot be looked at (")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.bin", IDS)
    path.chmod(0)
    assert refusal(path) == f"{path} cannot be read (Permission denied): let this user read it"


def test_a_tokenised_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph {i}" for i in range(500)))
    fields: dict[str, Any] = {"document": DocumentUnit.paragraph, "cache_dir": str(tmp_path / "cache")}
    text = DataConfig(DataSource.text, str(tmp_path / "a.txt"), sequence_length=9, **fields)
    written = open_text(text, text, seed=3)
    (folder,) = (tmp_path / "cache").iterdir()

    corpus = opened(folder)
    assert (corpus.separator, corpus.tokenizer, corpus.fingerprint) == (0, "bytes", written.fingerprint)
    assert corpus.train.vocab_size == 256
    for ours, theirs in ((corpus.train, written.train), (corpus.heldout, written.heldout)):
        assert [ours[i].tolist() for i in range(20)] == [theirs[i].tolist() for i in range(20)]

    assert opened(folder, end_of_document="0").separator == 0
    assert refusal(folder, end_of_document="7").endswith(f"a document in {folder} ends with 0; leave it out")
    assert refusal(folder, heldout_fraction=0.1).endswith("was split when it was tokenised; leave it out")
    part = MixturePart(DataSource.tokens, str(folder))
    mixed = DataConfig(DataSource.mixture, sequence_length=9, mixture=[part, MixturePart()])
    for name, value in (("end_of_document", "7"), ("heldout_fraction", 0.1)):
        with pytest.raises(DataError, match=f"data.{name}={value}: .*; leave it out"):
            open_tokens(part, replace(mixed, **{name: value}), 256, seed=0)
    mixed.mixture[1] = MixturePart(DataSource.text, str(tmp_path / "a.txt"))  # has a use for what is held out
    open_tokens(part, replace(mixed, heldout_fraction=0.1), 256, seed=0)
    assert refusal(folder, dtype=TokenDtype.uint8).endswith("says itself how it holds ids; leave it out")
    assert f"{folder} (held out) has " in refusal(folder, sequence_length=5000)


@pytest.mark.parametrize("name", ["folder", "a.bin"])
def test_a_folder_without_tokens(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert str(tmp_path / name) in refusal(tmp_path / name)
    assert "data.dtype=uint8" in refusal(tmp_path / name, dtype=TokenDtype.uint8)


def test_damaged_headers_are_one_line(tmp_path: Path) -> None:
    """Whatever byte of the header is another, the file is refused or read, and nothing else happens."""
    path = write(tmp_path, "a.npy", IDS)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for where in range(128):
        damaged = bytearray(whole)
        damaged[where] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        with suppress(DataError):
            opened(path)


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as refused:
        opened(path, **changes)
    message = str(refused.value)
    assert "\n" not in message
    assert not re.search("Error|Traceback", message)
    return message
