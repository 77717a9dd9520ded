"""Bytes and tokenizer.json: the same ids as the package gives, an end that no text holds, and each bad file's line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from harness.small_tokenizer import END, write_tokenizer
from tokenizers import Tokenizer

from train.data.source import DataError
from train.data.tokenizer import open_tokenizer

TEXTS = ["def main():\n    return 1\n", "", "  naïve — 東京 🙂\n\n", "x" * 1000]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def test_bytes_are_utf8_without_nul() -> None:
    tokenizer = open_tokenizer(None, None)
    assert (tokenizer.vocab_size, tokenizer.separator, tokenizer.identity) == (256, 0, "bytes")
    encoded = list(tokenizer.encode_batch([*TEXTS, "a\0b"]))
    assert [bytes(ids) for ids in encoded] == [text.encode() for text in TEXTS] + [b"ab"]


def test_a_file_gives_the_ids_of_the_package(tokenizer_file: Path) -> None:
    tokenizer, package = open_tokenizer(str(tokenizer_file), None), Tokenizer.from_file(str(tokenizer_file))
    encoded = list(tokenizer.encode_batch(TEXTS))
    assert [ids.tolist() for ids in encoded] == [package.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [package.decode(ids.tolist()) for ids in encoded] == TEXTS
    assert max(int(ids.max(initial=0)) for ids in encoded) < tokenizer.vocab_size == package.get_vocab_size()


def test_what_the_file_truncates_pads_or_adds_is_not(tokenizer_file: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    package = Tokenizer.from_file(str(tokenizer_file))
    package.enable_truncation(4)
    package.enable_padding(length=16)
    package.post_processor = TemplateProcessing(single=f"{END} $0 {END}", special_tokens=[(END, 1)])
    package.save(str(tmp_path / "tokenizer.json"))
    plain, changed = (open_tokenizer(str(path), None) for path in (tokenizer_file, tmp_path / "tokenizer.json"))
    for ours, theirs in zip(plain.encode_batch(TEXTS), changed.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert plain.identity != changed.identity


def test_text_that_spells_the_end_is_text(tokenizer_file: Path) -> None:
    tokenizer = open_tokenizer(str(tokenizer_file), None)
    (ids,) = tokenizer.encode_batch([f"it ends with {END}, they say"])
    assert tokenizer.separator not in ids
    assert f"with {END}, they" in Tokenizer.from_file(str(tokenizer_file)).decode(ids.tolist())


@pytest.mark.parametrize(
    ("special", "wanted", "separator"),
    [
        (("<pad>", END), None, 1),
        (("<pad>", "</s>", END), None, 2),  # of the usual ones, the first in our list
        (("<s>", "</s>"), None, 1),
        (("<mine>", END), "<mine>", 0),
        (("<mine>", END), "0", 0),
    ],
)
def test_the_end_of_a_document(special: tuple[str, ...], wanted: str | None, separator: int, tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json", special)
    assert open_tokenizer(str(path), wanted).separator == separator


def test_bad_files_and_ends_are_one_line(tokenizer_file: Path, tmp_path: Path) -> None:
    for name, content in {"text": b"hello", "other": b'{"a": 1}', "binary": b"\xff\xfe\0"}.items():
        (tmp_path / f"{name}.json").write_bytes(content)
    endless = write_tokenizer(tmp_path / "endless.json", ("<pad>",))
    cases = [
        (tmp_path / "none.json", None, r"cannot be read \(No such file or directory\): name a tokenizer.json"),
        (tmp_path, None, "is a folder: name the tokenizer.json in it"),
        (tmp_path / "text.json", None, "is no tokenizer.json: "),
        (tmp_path / "other.json", None, "is no tokenizer.json: "),
        (tmp_path / "binary.json", None, "is no tokenizer.json: "),
        (endless, None, "none of the usual tokens that end a document: set data.end_of_document"),
        (tokenizer_file, "<end>", "data.end_of_document=<end>: .* has no such token"),
        (tokenizer_file, "1000", "data.end_of_document=1000: .* has no such id; its ids end at 999"),
        (tokenizer_file, "999", "data.end_of_document=999: text that holds '.+' would end its document there; set it"),
        (tokenizer_file, "a", r"data.end_of_document=\d+: text that holds 'a' would end its document there; set it"),
        (None, "10", "data.end_of_document=10: bytes end a document with 0"),
    ]
    for path, wanted, said in cases:
        with pytest.raises(DataError, match=said) as refused:
            open_tokenizer(None if path is None else str(path), wanted)
        assert "\n" not in str(refused.value)


def test_an_empty_vocabulary_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    written = json.loads(tokenizer_file.read_text())
    written["model"] |= {"vocab": {}, "merges": []}
    written["added_tokens"] = []
    (tmp_path / "empty.json").write_text(json.dumps(written))
    with pytest.raises(DataError, match="has no tokens"):
        open_tokenizer(str(tmp_path / "empty.json"), None)


def test_without_the_package_it_says_what_to_install(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'switchyard\[data\]'"):
        open_tokenizer(str(tokenizer_file), None)
    assert open_tokenizer(None, None).vocab_size == 256  # bytes need no package
