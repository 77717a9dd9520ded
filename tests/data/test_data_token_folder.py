"""The tokenised folder: what is in it, that a kill costs nothing but time, and each bad folder's line."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.small_tokenizer import write_tokenizer
from rich.console import Console
from tokenizers import Tokenizer

from train.data.config import DataConfig, DataSource, DocumentUnit
from train.data.feed import by_hash
from train.data.pieces import PIECE, START
from train.data.source import DataError
from train.data.text_plan import TextPlan, plan_text
from train.data.token_folder import TokenFolder
from train.data.token_writer import HELDOUT, TRAIN, Progress, TokenWriter, id_dtype
from train.data.tokenise import tokenise
from train.data.tokenise_progress import TokeniseProgress

ROOT = Path(__file__).resolve().parents[2]


def plan(path: Path, **options: Any) -> TextPlan:
    data = DataConfig(source=DataSource.text, path=str(path), **{"heldout_fraction": 0.2, **options})
    return plan_text(data, data, seed=0)


def make(folder: Path, made_from: TextPlan, **options: Any) -> tuple[TokenFolder, str]:
    """The folder, and what was shown."""
    shown = io.StringIO()
    progress = TokeniseProgress(Console(file=shown, width=200))
    return tokenise(folder, made_from, progress, "to", **options), shown.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents(shards: list[np.ndarray], separator: int) -> list[list[int]]:
    """The ids between separators."""
    ids = np.concatenate(shards)
    assert ids[-1] == separator
    return [part[part != separator].tolist() for part in np.split(ids, np.flatnonzero(ids == separator) + 1)[:-1]]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {i}: {'word ' * (i % 13)}\n" for i in range(2000)))
    return path


def test_every_document_is_on_one_side_and_ends(lines: Path, tmp_path: Path) -> None:
    folder, _ = make(tmp_path / "out", plan(lines, document=DocumentUnit.line), shard_tokens=1000)
    assert (folder.vocab_size, folder.separator, folder.tokenizer) == (256, 0, "bytes")
    assert folder.documents == 2000
    assert {len(shard) for shard in folder.train[:-1]} == {1000}
    assert folder.train[0].dtype == np.uint8
    train, heldout = ([bytes(ids) for ids in documents(side, 0)] for side in (folder.train, folder.heldout))
    route, expected = by_hash(0.2), lines.read_bytes().splitlines()
    assert train == [line for line in expected if route(line) == TRAIN]
    assert heldout == [line for line in expected if route(line) == HELDOUT]
    assert 300 < len(heldout) < 500


def test_a_text_that_comes_twice_is_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i % 50}\n" for i in range(500)))
    folder, _ = make(tmp_path / "out", plan(tmp_path / "a.txt", document=DocumentUnit.line))
    train, heldout = ({bytes(ids) for ids in documents(side, 0)} for side in (folder.train, folder.heldout))
    assert len(train) + len(heldout) == 50
    assert not train & heldout


def test_a_long_document_is_split_by_pieces_with_a_separator_at_each_jump(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{i:07d}\n" for i in range(40 * PIECE // 8)))
    whole = plan(path)
    pieces = [piece.text.encode() for piece in whole.feeds["documents"][0].pieces(START)]
    assert len(pieces) > 30
    route, expected = by_hash(0.2), {TRAIN: b"", HELDOUT: b""}
    for i, piece in enumerate(pieces):
        side = route(piece)
        ends = i == len(pieces) - 1 or route(pieces[i + 1]) != side
        expected[side] += piece + b"\0" * ends
    folder, _ = make(tmp_path / "out", whole)
    assert np.concatenate(folder.train).tobytes() == expected[TRAIN]
    assert np.concatenate(folder.heldout).tobytes() == expected[HELDOUT]
    assert folder.documents == 1


def test_a_tokenizer_file_and_uint16(lines: Path, tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    folder, _ = make(tmp_path / "out", plan(lines, document=DocumentUnit.line, tokenizer=str(path)))
    assert (folder.vocab_size, folder.separator, folder.train[0].dtype) == (1000, 1, np.uint16)
    package = Tokenizer.from_file(str(path))
    texts = [package.decode(ids) for side in (folder.train, folder.heldout) for ids in documents(side, 1)]
    assert sorted(texts) == sorted(lines.read_text().splitlines())


def test_the_smallest_type_that_holds_the_ids() -> None:
    assert [id_dtype(n).itemsize for n in (2, 256, 257, 65536, 65537)] == [1, 1, 2, 2, 4]


def test_batches_and_commits_change_nothing_and_shards_only_the_cuts(lines: Path, tmp_path: Path) -> None:
    tokenised = [
        make(tmp_path / f"out{i}", plan(lines, document=DocumentUnit.line), **options)[0]
        for i, options in enumerate([{}, {"batch": 1000, "commit_tokens": 1}, {"shard_tokens": 777}])
    ]
    assert files(tmp_path / "out0") == files(tmp_path / "out1")
    assert tokenised[0].fingerprint == tokenised[1].fingerprint
    assert np.array_equal(np.concatenate(tokenised[2].train), tokenised[0].train[0])


def test_the_fingerprint_is_of_the_tokens_and_not_of_where_they_are_from(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    copied = tmp_path / "other" / "copy.txt"
    copied.write_bytes(lines.read_bytes())
    unit = {"document": DocumentUnit.line}
    here, there = (make(tmp_path / f"out-{path.stem}", plan(path, **unit))[0] for path in (lines, copied))
    assert here.settings != there.settings
    assert here.fingerprint == there.fingerprint
    copied.write_bytes(lines.read_bytes().replace(b"line 77:", b"line 78:"))
    changed, _ = make(tmp_path / "out-changed", plan(copied, **unit))
    assert changed.fingerprint != here.fingerprint


KILLED = """
import io, sys
from pathlib import Path
from rich.console import Console
from train.data.config import DataConfig, DataSource, DocumentUnit
from train.data.text_plan import plan_text
from train.data.tokenise import tokenise
from train.data.tokenise_progress import TokeniseProgress
data = DataConfig(
    source=DataSource.text, path=sys.argv[1], document=DocumentUnit.line, tokenizer=sys.argv[3], heldout_fraction=0.2
)
tokenise(Path(sys.argv[2]), plan_text(data, data, 0), TokeniseProgress(Console(file=io.StringIO())), "to",
         shard_tokens=15_000, batch=100, commit_tokens=1)
"""


def test_killed_and_started_again_it_is_the_same_folder(lines: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    lines.write_text("".join(f"line {i}: {'word ' * (i % 13)}\n" for i in range(20_000)))
    wanted = plan(lines, document=DocumentUnit.line, tokenizer=str(tokenizer))
    make(tmp_path / "whole", wanted, shard_tokens=15_000)
    killed = tmp_path / "killed"
    words = [sys.executable, "-c", KILLED, str(lines), str(killed), str(tokenizer)]
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while sum(read_tokens(killed)) < 20_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="unfinished: run the same switchyard tokenize again, it goes on"):
        TokenFolder.open(killed)
    first_shard = (killed / "train-00000.bin").stat().st_mtime_ns
    last_shard = max(killed.glob("train-*.bin"))
    with last_shard.open("ab") as file:  # as if it had died in the middle of a write
        file.write(b"\xff" * 100)
    (killed / "train-00099.bin").write_bytes(b"\xff")
    _, shown = make(killed, wanted, shard_tokens=15_000)
    assert "going on with what is there" in shown
    assert files(killed) == files(tmp_path / "whole")
    assert (killed / "train-00000.bin").stat().st_mtime_ns == first_shard  # it was not written again


def read_tokens(folder: Path) -> list[int]:
    progress = Progress.read(folder)
    return list(progress.tokens.values()) if progress else [0]


def test_in_the_middle_of_a_document_it_goes_on_too(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{i:07d}\n" for i in range(12 * PIECE // 8)))
    make(tmp_path / "whole", plan(path))
    for steps in range(1, 12):
        folder = tmp_path / f"stopped{steps}"
        folder.mkdir()
        stopped = plan(path)
        writer = TokenWriter(folder, np.dtype("u1"), Progress(stopped.settings, 2**27))
        (feed,) = stopped.start(writer, batch=1)
        for _ in range(steps):
            feed.step()
        writer.commit()
        feed.close()
        writer.close()
        make(folder, stopped)
        assert files(folder).keys() | {"lock"} == files(tmp_path / "whole").keys()
        assert files(folder) == files(tmp_path / "whole")


def test_a_finished_folder_is_opened_and_not_made_again(lines: Path, tmp_path: Path) -> None:
    made, _ = make(tmp_path / "out", plan(lines, document=DocumentUnit.line))
    before = (tmp_path / "out" / "train-00000.bin").stat().st_mtime_ns
    (tmp_path / "out" / "progress.json").write_text("{}")  # a kill between the last two writes leaves one
    again, shown = make(tmp_path / "out", plan(lines, document=DocumentUnit.line))
    assert (shown, again.fingerprint) == ("", made.fingerprint)
    assert (tmp_path / "out" / "train-00000.bin").stat().st_mtime_ns == before
    assert not (tmp_path / "out" / "progress.json").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_and_changed_files_are_refused(finished: bool, lines: Path, tmp_path: Path) -> None:
    made_from = plan(lines, document=DocumentUnit.line)
    if finished:
        make(tmp_path / "out", made_from)
    else:
        (tmp_path / "out").mkdir()
        Progress(made_from.settings, 2**27, tokens={TRAIN: 5, HELDOUT: 0}).write(tmp_path / "out")
    with pytest.raises(DataError, match=r"out holds tokens of data.document=line, not paragraph: name another folder"):
        make(tmp_path / "out", plan(lines, document=DocumentUnit.paragraph))
    with pytest.raises(DataError, match=r"out holds tokens of data.heldout_fraction=0.2, not 0.1"):
        make(tmp_path / "out", plan(lines, document=DocumentUnit.line, heldout_fraction=0.1))
    lines.write_text("other")
    with pytest.raises(DataError, match="out holds tokens of other files, or of files that have changed"):
        make(tmp_path / "out", plan(lines, document=DocumentUnit.line))


def test_too_little_text_to_split_is_refused_and_leaves_room_for_another_try(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"one document {i}\n\n" for i in range(40)))
    with pytest.raises(DataError, match=r"no document is .*; .*data\.document=paragraph.*heldout_fraction"):
        make(tmp_path / "out", plan(tmp_path / "a.txt"))
    folder, _ = make(tmp_path / "out", plan(tmp_path / "a.txt", document=DocumentUnit.paragraph))
    assert folder.documents == 40


def test_what_failed_before_its_first_token_may_be_put_right(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"body": "document {i}"}}\n' for i in range(50)))
    with pytest.raises(DataError, match="no field 'text'"):
        make(tmp_path / "out", plan(tmp_path / "a.jsonl"))
    assert make(tmp_path / "out", plan(tmp_path / "a.jsonl", text_field="body"))[0].documents == 50


def test_a_folder_of_something_else_is_left_alone(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-00001.bin").write_text("mine")
    with pytest.raises(DataError, match=r"to: .*out holds other files \(train-00001.bin\): name a folder that is new"):
        make(tmp_path / "out", plan(lines))
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"train-00001.bin": "mine"}


def test_where_nothing_can_be_written(lines: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"to: .* cannot be written to \(Not a directory\): name another folder"):
        make(lines / "out", plan(lines))


def test_bad_folders_are_one_line(lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder, _ = make(out, plan(lines, document=DocumentUnit.line), shard_tokens=20_000)
    written, shard = json.loads((out / "tokens.json").read_text()), out / "train-00001.bin"
    assert len(folder.train) > 1
    content = shard.read_bytes()

    def refused(said: str) -> None:
        with pytest.raises(DataError, match=said) as error:
            TokenFolder.open(out)
        assert "\n" not in str(error.value)

    shard.write_bytes(content[:-1])
    refused(r"out is damaged \(train-00001.bin has \d+ bytes and should have 20000\): delete it and tokenise again")
    shard.unlink()
    refused(r"out is damaged \(.*No such file")
    shard.write_bytes(content)
    assert len(TokenFolder.open(out).train) == len(folder.train)
    (out / "tokens.json").write_text(json.dumps(written | {"format": 2}))
    refused("out has format 2, of a newer version of switchyard: update it")
    (out / "tokens.json").write_text(json.dumps({"format": 1}))
    refused("out is damaged")
    (out / "tokens.json").write_text("{")
    refused("tokens.json cannot be read: delete .* and tokenise again")
    (out / "tokens.json").unlink()
    refused("out holds no tokens.json: name a folder that switchyard tokenize wrote")


def test_a_record_of_more_than_there_is_is_refused(lines: Path, tmp_path: Path) -> None:
    progress = Progress({}, 100, tokens={TRAIN: 150, HELDOUT: 0})
    (tmp_path / "train-00000.bin").write_bytes(b"x" * 100)
    (tmp_path / "train-00001.bin").write_bytes(b"x" * 49)
    with pytest.raises(DataError, match=r"train-00001.bin is shorter than progress.json says: delete"):
        TokenWriter(tmp_path, np.dtype("u1"), progress)
