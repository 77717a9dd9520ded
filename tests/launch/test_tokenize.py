"""`switchyard tokenize`: its words, what it makes, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness.small_tokenizer import write_tokenizer

from launch.cli import main
from train.data.token_folder import TokenFolder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"a line of text, number {i}\n" for i in range(500)))
    return path


def tokenize(*words: str) -> int:
    return main(["tokenize", *words])


def test_text_becomes_a_folder_of_tokens(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to, tokenizer = tmp_path / "out", write_tokenizer(tmp_path / "tokenizer.json")
    words = [f"to={to}", f"data.path={text}", f"data.tokenizer={tokenizer}", "data.document=line"]
    assert tokenize(*words) == 0
    folder = TokenFolder.open(to)
    assert (folder.vocab_size, folder.separator, folder.documents) == (1000, 1, 500)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"tokenising 0.0 MB into {to}"
    assert out[1].startswith(f"500 documents, {folder.tokens:,} tokens, ")
    assert out[2].endswith(" held out, 1,000 ids, 1 ends a document")
    assert out[3] == f"train on them: switchyard train data=tokens data.path={to}"
    assert len(out) == 4

    before = (to / "train-00000.bin").stat().st_mtime_ns
    assert tokenize(*words) == 0
    assert capsys.readouterr().out.startswith(f"{to} is finished already, with these settings\n")
    assert (to / "train-00000.bin").stat().st_mtime_ns == before

    assert tokenize(*words, "data.document=paragraph") == 2
    assert f"{to} holds tokens of data.document=line, not paragraph: name another" in capsys.readouterr().err
    text.write_text("another text\n" * 100)
    assert tokenize(*words) == 2
    assert f"{to} holds tokens of other files, or of files that have changed" in capsys.readouterr().err


def test_a_dataset_becomes_a_folder_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset").mkdir()
    for split in ("train", "test"):
        lines = "".join(json.dumps({"body": f"{split} {i}"}) + "\n" for i in range(30))
        (tmp_path / "dataset" / f"{split}.jsonl").write_text(lines)
    words = ["data=hf", f"data.name={tmp_path / 'dataset'}", "data.text_field=body", "data.heldout_split=test"]
    assert tokenize(f"to={tmp_path / 'out'}", *words) == 0
    folder = TokenFolder.open(tmp_path / "out")
    sides = [np.concatenate(side).tobytes() for side in (folder.train, folder.heldout)]
    assert sides == ["".join(f"{split} {i}\0" for i in range(30)).encode() for split in ("train", "test")]
    assert "tokenising a stream of documents into" in capsys.readouterr().out
    drawn = [*words, "data.shuffle_buffer=10", "train.seed=3"]
    assert tokenize(f"to={tmp_path / 'drawn'}", *drawn) == 0
    assert np.concatenate(TokenFolder.open(tmp_path / "drawn").train).tobytes() != sides[0]


def test_a_refusal_is_one_line_and_code_2(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to, path = f"to={tmp_path / 'out'}", f"data.path={text}"
    cases = [
        ([], "where to? switchyard tokenize to=FOLDER data.path=TEXT"),
        (["to=", path], "where to? switchyard tokenize to=FOLDER data.path=TEXT"),
        ([f"to={text}", path], f"to={text} is a file: name a folder that is new or empty"),
        ([to], "data=text: set data.path to a .txt, .jsonl or .parquet file, a folder or a glob"),
        ([to, "data=hf"], "data=hf: set data.name to a dataset, "),
        ([to, "data=stdlib"], "data=stdlib: there is no text in it; choose data=text or data=hf"),
        ([to, "data=tokens", path], "data=tokens: there is no text in it; choose data=text or data=hf"),
        ([to, path, "data.pat=x"], "unknown key 'data.pat'; did you mean data.path?"),
        ([to, path, "data.document=word"], "data.document=word: set it to file, paragraph or line"),
        ([to, path, "data.sequence_length=9"], "data.sequence_length=9: tokenize reads no data.sequence_length; "),
        ([to, path, "train.steps=3"], "train.steps=3: tokenize reads no train.steps; leave it out"),
        ([to, path, "train.seed=3"], "train.seed=3: tokenize reads no train.seed; leave it out"),
        ([to, path, "data.heldout_fraction=0"], "data.heldout_fraction=0.0: set it above 0 and below 1"),
        ([to, "data.path=none.txt"], "data.path=none.txt matches no text file: "),
        ([to, path, "data.tokenizer=none.json"], "data.tokenizer=none.json cannot be read (No such file"),
        ([to, path, "--fast"], "unknown flag --fast"),
    ]
    for words, said in cases:
        assert tokenize(*words) == 2, words
        out, err = capsys.readouterr()
        assert err.startswith(f"switchyard: {said}"), err
        assert (out, err.count("\n")) == ("", 1)
    assert not (tmp_path / "out").exists()


def test_help_and_cfg(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        tokenize("--help")
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("switchyard tokenize to=FOLDER [key=value …]")
    assert tokenize(f"to={tmp_path / 'out'}", f"data.path={text}", "--cfg", "job") == 0
    assert f"  path: {text}\n" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
