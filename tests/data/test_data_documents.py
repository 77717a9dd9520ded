"""Documents of files: every format, one order, cut at the same places, from any mark; and each bad file's line."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from train.data.config import DocumentUnit
from train.data.documents import FileDocuments, find_files
from train.data.pieces import PIECE, START, cut
from train.data.source import DataError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["first\nline two", "naïve — 東京 🙂", " third "]


def read(path: Path | str, field: str = "text", unit: DocumentUnit = DocumentUnit.file) -> list[str]:
    """Whole documents."""
    documents, open_text = [], ""
    for piece in FileDocuments(str(path), field, unit).pieces(START):
        open_text += piece.text
        if piece.last:
            documents.append(open_text)
            open_text = ""
    assert not open_text
    return documents


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    lines = "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts))
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def write_parquet(path: Path, texts: list[str], field: str = "text") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), field: texts}), path)
    return path


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (DocumentUnit.file, ["\none\ntwo\n\n\n  three é\n \t\nfour\n\n"]),
        (DocumentUnit.paragraph, ["one\ntwo", "  three é", "four"]),  # a line of spaces is empty to a reader
        (DocumentUnit.line, ["one", "two", "  three é", "four"]),
    ],
)
def test_a_text_file_by_unit(unit: DocumentUnit, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\none\ntwo\n\n\n  three é\n \t\nfour\n\n")
    assert read(tmp_path / "a.txt", unit=unit) == expected


@pytest.mark.parametrize(
    ("write", "name"), [(write_jsonl, "a.jsonl"), (write_jsonl, "a.jsonl.gz"), (write_parquet, "a.parquet")]
)
def test_records(write: Callable[[Path, list[str], str], Path], name: str, tmp_path: Path) -> None:
    texts = [*TEXTS, "", "   ", "its last line ends\n"] + [f"document {i}" for i in range(1000)]
    path = write(tmp_path / name, texts, "body")
    assert read(path, "body") == TEXTS + texts[5:]  # blank ones are left out


def test_a_folder_is_read_whole_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "deep" / "1.txt").write_text("third")
    (tmp_path / "c [1] é*.txt").write_text("fourth")  # to a glob it would be another name
    (tmp_path / ".hidden" / "x.txt").write_text("unseen")
    (tmp_path / "b" / ".x.txt").write_text("unseen")
    (tmp_path / "notes.md").write_text("unseen")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.jsonl").touch()
    write_jsonl(tmp_path / "a.jsonl", ["first", "second"])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "back").symlink_to(tmp_path)  # a loop
    assert read(tmp_path) == ["first", "second", "third", "fourth"]
    assert read(f"{tmp_path}/**/*.txt") == ["third", "fourth"]
    assert [Path(file).name for file in find_files(f"{tmp_path}/*.jsonl")] == ["a.jsonl", "empty.jsonl"]
    assert read(tmp_path / "c [1] é*.txt") == ["fourth"]  # a file of that name goes before a glob


def test_a_piece_is_cut_at_a_line_a_space_or_between_characters() -> None:
    assert list(cut(["aa\nbb\ncc"], 6)) == [("aa\nbb\n", False), ("cc", True)]
    assert list(cut(["aa bb cc"], 6)) == [("aa bb", False), (" cc", True)]
    assert list(cut(["🙂🙂🙂🙂🙂"], 2)) == [("🙂🙂", False), ("🙂🙂", False), ("🙂", True)]
    assert list(cut([" aaaaaa"], 3)) == [(" aa", False), ("aaa", False), ("a", True)]
    assert list(cut(["aaa"], 3)) == [("aaa", True)]
    assert list(cut([" \n", "", "\n"], 9)) == []


def test_where_a_piece_is_cut_does_not_depend_on_chunks() -> None:
    text = "".join(f"{'word ' * (i % 7)}{i}\n" for i in range(500)) + "x" * 300 + " end"
    expected = list(cut([text], 64))
    assert "".join(piece for piece, _ in expected) == text
    assert max(len(piece) for piece, _ in expected) <= 64
    assert [last for _, last in expected] == [False] * (len(expected) - 1) + [True]
    for size in (1, 7, 63, 64, 65, 1000):
        assert list(cut([text[i : i + size] for i in range(0, len(text), size)], 64)) == expected


def test_reading_goes_on_from_every_mark(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("line\n" * (PIECE // 2))
    write_jsonl(tmp_path / "2.jsonl", ["a", "b\n" * PIECE, "c"])
    write_parquet(tmp_path / "3.parquet", ["d", "e"])
    documents = FileDocuments(str(tmp_path), "text", DocumentUnit.file)
    pieces = list(documents.pieces(START))
    assert [piece.last for piece in pieces].count(True) == 6
    assert max(len(piece.text) for piece in pieces) <= PIECE
    assert len(pieces) > 8
    for index, piece in enumerate(pieces):
        assert list(documents.pieces(piece.mark)) == pieces[index + 1 :]


def test_bad_sources_are_one_line_that_names_them(tmp_path: Path) -> None:
    files = {
        "broken.jsonl": b'{"text": "a"}\n{"text": \n',
        "plain.jsonl": b"hello\n",
        "broken.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 99)[:-9],
        "broken.parquet": b"PAR1 and no more",
        "latin.txt": "café\n".encode("latin-1"),
        "latin.jsonl": '{"text": "café"}\n'.encode("latin-1"),
        "other.jsonl": b'{"body": "a", "id": 1}\n',
        "number.jsonl": b'{"text": 1}\n{"text": 2}\n',
        "mixed.jsonl": b'{"text": "a"}\n{"text": [1]}\n',
        "list.jsonl": b'{"text": ["a"]}\n',
        "hole.jsonl": b'{"text": "a"}\n{"text": null}\n',
        "some.jsonl": b'{"text": "a", "id": 1}\n{"id": 2}\n',
        "blank.jsonl": b"\n\n",
        "notes.md": b"# hello\n",
        "empty.txt": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    write_parquet(tmp_path / "other.parquet", ["a"], "body")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "number.parquet")
    (tmp_path / "folder").mkdir()
    cases = {
        "broken.jsonl": "broken.jsonl is not json, or is damaged: ",
        "plain.jsonl": "plain.jsonl is not json, or is damaged: ",
        "broken.jsonl.gz": "broken.jsonl.gz is not json, or is damaged: ",
        "broken.parquet": "broken.parquet is not parquet, or is damaged: ",
        "latin.txt": "latin.txt is not UTF-8: convert it",
        "latin.jsonl": "latin.jsonl is not UTF-8: convert it",
        "other.jsonl": "other.jsonl: no field 'text'; set data.text_field to one of body, id",
        "other.parquet": "other.parquet: no field 'text'; set data.text_field to one of id, body",
        "number.jsonl": "number.jsonl: field 'text' is not text but int64; set data.text_field",
        "number.parquet": "number.parquet: field 'text' is not text but int64; set data.text_field",
        "mixed.jsonl": "mixed.jsonl: field 'text' is not text but ",
        "list.jsonl": "list.jsonl: field 'text' is not text but ",
        "hole.jsonl": "hole.jsonl: record 1 has nothing in its field 'text'",
        "some.jsonl": "some.jsonl: record 1 has nothing in its field 'text'",
        "blank.jsonl": "blank.jsonl holds no records",
        "notes.md": "no text is read from such a file; name one that ends in .txt, .jsonl, .jsonl.gz, .parquet",
        "empty.txt": r"holds no text: its 1 file\(s\) are empty",
        "none.txt": "none.txt matches no text file: name a file, folder or glob of .txt, ",
        "folder": "folder holds no text file: ",
        "*.md": "matches no text file: ",
    }
    for name, said in cases.items():
        with pytest.raises(DataError, match=said) as refused:
            read(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match=r"data.path is empty"):
        find_files(" ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(DataError, match=r"a.txt cannot be read: .*chmod"):
        read(tmp_path)


def test_a_file_that_goes_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    documents = FileDocuments(str(tmp_path), "text", DocumentUnit.file)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"a.txt"):
        list(documents.pieces(START))


def test_identity_follows_files_and_settings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")

    def identity(unit: DocumentUnit = DocumentUnit.file) -> dict[str, object]:
        return FileDocuments(str(tmp_path), "text", unit).identity()

    before = identity()
    assert identity() == before
    assert identity(DocumentUnit.line) != before
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    touched = identity()
    assert touched != before
    (tmp_path / "b.txt").write_text("d")
    assert identity() != touched


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("abc")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"data=text needs the package datasets: pip install 'switchyard\[data\]'"):
        read(tmp_path)


def test_local_files_need_no_network_no_cache_and_no_words(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    write_jsonl(tmp_path / "text" / "a.jsonl", TEXTS)
    (tmp_path / "text" / "b.txt").write_text("fourth")
    program = """
import os, socket, sys
def refuse(*_, **__): os._exit(3)  # an exception might be caught
socket.socket.connect = socket.getaddrinfo = refuse
from train.data.config import DataConfig, DocumentUnit
from train.data.documents import FileDocuments
from train.data.hf_documents import HfDocuments
from train.data.pieces import START
files = FileDocuments(sys.argv[1], "text", DocumentUnit.file)
dataset = HfDocuments(DataConfig(name=sys.argv[1]), "train", "data.split", 0, seed=0)
sys.exit(40 + sum(len(list(documents.pieces(START))) for documents in (files, dataset)))
"""
    places = {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path / "text")]
    done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (47, "", "")  # of the folder a dataset takes the .jsonl alone
    left = [path for place in ("hf", "home") for path in (tmp_path / place).rglob("*") if path.is_file()]
    assert left == []
