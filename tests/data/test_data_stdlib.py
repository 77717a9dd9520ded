"""The standard library as text: real, split by file, the same on every machine."""

from pathlib import Path

import numpy as np
import pytest

from train.data.source import Corpus, DataError, TokenSource
from train.data.stdlib import is_heldout, open_stdlib, source_paths
from train.data.stream import InOrder, ShuffledStream


def write(folder: Path, sources: dict[str, str]) -> Path:
    for path, text in sources.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def sources(corpus: Corpus) -> tuple[TokenSource, TokenSource]:
    """What the training and the held-out stream are streams of."""
    assert isinstance(corpus.train, ShuffledStream)
    assert isinstance(corpus.heldout, InOrder)
    return corpus.train.source, corpus.heldout.source


def documents(source: TokenSource) -> list[bytes]:
    """Of a source with sequence_length 1: all its text, cut at the separator."""
    ids = [source.sample(0)[0], *(source.sample(i)[1] for i in range(len(source)))]
    return bytes(int(i) for i in ids).split(b"\0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, {f"package{i % 3}/module{i}.py": f"def f{i}(): return {i}\n" for i in range(60)})


def test_real_text() -> None:
    corpus = open_stdlib(512, seed=0)
    train, heldout = sources(corpus)
    assert (corpus.separator, corpus.tokenizer) == (0, "bytes")
    assert len(train) > 10_000
    assert 100 < len(heldout) < len(train) / 5
    for source in (train, heldout):
        tokens = np.concatenate([source.sample(i) for i in range(50)])
        assert tokens.dtype == np.int64
        assert tokens.min() >= 0
        assert tokens.max() < source.vocab_size == 256
        assert b"def " in tokens.astype(np.uint8).tobytes()


def test_splits_share_no_file_and_cover_all(folder: Path) -> None:
    train, heldout = map(documents, sources(open_stdlib(1, 0, folder)))
    assert sorted(train + heldout) == sorted(path.read_bytes() for path in folder.rglob("*.py"))
    assert set(heldout) == {(folder / path).read_bytes() for path in source_paths(folder) if is_heldout(path)}


def test_windows_overlap_by_their_one_target(folder: Path) -> None:
    text = b"\0".join(documents(sources(open_stdlib(1, 0, folder))[0]))
    train, _ = sources(open_stdlib(7, 0, folder))
    assert len(train) == (len(text) - 1) // 7
    for i in (0, 1, len(train) - 1):
        assert bytes(train.sample(i).tolist()) == text[7 * i : 7 * i + 8]
    for outside in (-1, len(train)):
        with pytest.raises(IndexError, match=f"sample {outside} of"):
            train.sample(outside)


def test_sources_are_read_in_one_order_everywhere(folder: Path) -> None:
    assert source_paths(folder) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def test_what_differs_between_machines_is_not_read(folder: Path) -> None:
    before = open_stdlib(7, 0, folder).fingerprint
    skipped = [
        *("site-packages/torch/a.py", "dist-packages/a.py", "__pycache__/a.py", "test/a.py", "json/tests/a.py"),
        *("idlelib/idle_test/a.py", "config-3.11-x86_64/a.py", "_sysconfigdata__linux.py", "sitecustomize.py", "a.txt"),
    ]
    write(folder, dict.fromkeys(skipped, "print('here only')\n" * 9))
    assert open_stdlib(7, 0, folder).fingerprint == before


@pytest.mark.parametrize("change", [{"package0/module0.py": "def g(): pass\n"}, {"new.py": "x = 1\n"}])
def test_fingerprint_follows_the_content(folder: Path, change: dict[str, str]) -> None:
    before = open_stdlib(7, 0, folder).fingerprint
    assert open_stdlib(9, 0, folder).fingerprint == before
    assert open_stdlib(7, write(folder, change)).fingerprint != before


def test_fingerprint_follows_the_paths(folder: Path) -> None:
    before = open_stdlib(7, 0, folder).fingerprint
    (folder / "package0/module0.py").rename(folder / "package0/module00.py")
    assert open_stdlib(7, 0, folder).fingerprint != before


def test_no_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Python sources .* data\.source=synthetic"):
        open_stdlib(7, 0, tmp_path)


def test_too_little_text_is_refused(folder: Path) -> None:
    heldout_bytes = len(b"\0".join(documents(sources(open_stdlib(1, 0, folder))[1])))
    assert len(sources(open_stdlib(heldout_bytes - 1, 0, folder))[1]) == 1
    with pytest.raises(DataError, match=f"held-out text has {heldout_bytes} tokens.* lower data.sequence_length"):
        open_stdlib(heldout_bytes, 0, folder)
    with pytest.raises(DataError, match="train text has"):
        open_stdlib(10_000, 0, folder)
