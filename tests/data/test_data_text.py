"""data=text: tokenised once for all processes and runs, and again when the text is another."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.small_tokenizer import write_tokenizer

from train.data.config import DataConfig, DataSource, DocumentUnit, MixturePart
from train.data.corpus import open_corpus
from train.data.source import Corpus, DataError
from train.data.text import open_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    (tmp_path / "a.txt").write_text("".join(f"a line of text, number {i}\n" for i in range(500)))
    return DataConfig(
        source=DataSource.text,
        path=str(tmp_path / "a.txt"),
        document=DocumentUnit.line,
        sequence_length=16,
        cache_dir=str(tmp_path / "cache"),
    )


def entries(data: DataConfig) -> set[str]:
    return {path.name for path in Path(data.cache_dir).iterdir()}


def test_a_corpus_of_bytes(data: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = open_text(data, data, seed=3)
    assert (corpus.separator, corpus.tokenizer, corpus.train.vocab_size) == (0, "bytes", 256)
    text = b"\0" + Path(data.path or "").read_bytes().replace(b"\n", b"\0")
    for i in range(50):
        sample = bytes(corpus.train[i].astype(np.uint8))
        assert len(sample) == 17
        assert all(line in text for line in sample.split(b"\0"))
    heldout = b"".join(bytes(corpus.heldout[i].astype(np.uint8))[:-1] for i in range(20))
    for line in heldout.split(b"\0")[:-1]:
        assert line in Path(data.path or "").read_bytes().splitlines()
    assert "500 documents, 1" in capsys.readouterr().out


def test_the_next_run_reads_what_is_there(data: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    first = open_text(data, data, seed=3)
    (folder,) = Path(data.cache_dir).iterdir()
    (folder / "lock").unlink()  # nothing is written to a cache that has it all: others may own it
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    again = open_text(data, data, seed=3)
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.train[77], first.train[77])


def test_other_text_or_settings_are_another_entry(data: DataConfig, tmp_path: Path) -> None:
    before = open_text(data, data, seed=0).fingerprint
    Path(data.path or "").write_text("".join(f"b line of text, number {i}\n" for i in range(500)))
    assert open_text(data, data, seed=0).fingerprint != before
    assert len(entries(data)) == 2
    data.document = DocumentUnit.paragraph
    with pytest.raises(DataError, match="too little to split"):
        open_text(data, data, seed=0)
    data.document = DocumentUnit.line
    data.tokenizer = str(write_tokenizer(tmp_path / "tokenizer.json"))
    assert open_text(data, data, seed=0).train.vocab_size == 1000


def test_the_same_text_elsewhere_is_the_same_corpus(data: DataConfig, tmp_path: Path) -> None:
    first = open_text(data, data, seed=0)
    (tmp_path / "b.txt").write_bytes(Path(data.path or "").read_bytes())
    data.path = str(tmp_path / "b.txt")
    assert open_text(data, data, seed=0).fingerprint == first.fingerprint
    assert len(entries(data)) == 2


PROCESS = """
import sys
from train.data.config import DataConfig, DataSource, DocumentUnit
from train.data.text import open_text
data = DataConfig(source=DataSource.text, path=sys.argv[1], document=DocumentUnit.line, sequence_length=16,
                  cache_dir=sys.argv[2])
sys.stdin.readline()  # both at once
print(open_text(data, data, seed=3).fingerprint)
"""


def test_of_two_processes_one_tokenises(data: DataConfig) -> None:
    command = [sys.executable, "-c", PROCESS, str(data.path), data.cache_dir]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    out = [words.splitlines() for words, _ in said]
    assert out[0][-1] == out[1][-1] == open_text(data, data, seed=3).fingerprint
    assert sorted(len(words) for words in out) == [1, 3]  # one has two lines more: that it begins, and what it made
    assert len(entries(data)) == 1


def test_a_cache_that_cannot_be_written(data: DataConfig, tmp_path: Path) -> None:
    data.cache_dir = str(tmp_path / "a.txt" / "cache")
    with pytest.raises(DataError, match=r"data.cache_dir=.*a.txt/cache: .* cannot be written to \(Not a directory\)"):
        open_text(data, data, seed=0)


def test_as_one_of_a_mixture_and_by_the_common_door(data: DataConfig) -> None:
    def tokens(corpus: Corpus) -> list[list[int]]:
        return [corpus.train[i].tolist() for i in range(20)]

    alone = open_corpus(data, 256, seed=0)
    part = MixturePart(source=DataSource.text, name="lines", path=data.path, document=DocumentUnit.line)
    mixture = DataConfig(source=DataSource.mixture, mixture=[part], sequence_length=16, cache_dir=data.cache_dir)
    mixed = open_corpus(mixture, 256, seed=0)
    assert (mixed.separator, mixed.tokenizer) == (0, "bytes")
    assert len(entries(data)) == 1
    with pytest.raises(
        DataError, match=r"data=text needs a vocabulary of at least 256, .*: set model.vocab_size to 256"
    ):
        open_corpus(data, 100, seed=0)
    assert tokens(alone) == tokens(open_corpus(data, 300, seed=0))
