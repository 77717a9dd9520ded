"""data=hf: trained on while it is read, by several processes, across runs and kills, with the same samples."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from train.data.config import DataConfig, DataSource, MixturePart
from train.data.corpus import open_corpus
from train.data.feed import by_hash
from train.data.hf_documents import HfDocuments
from train.data.hf_stream import open_hf
from train.data.pieces import START
from train.data.source import DataError
from train.data.spool import Spool, SpoolStream, read_wanted
from train.data.spool_writer import SpoolWriter
from train.data.text_plan import plan_text
from train.data.token_writer import HELDOUT, TRAIN, Progress

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [f"document {i}: {'word ' * (i % 11)}" for i in range(600)]
LENGTH = 16


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """A dataset of two jsonl files and a validation split."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name, texts in {"train-0": TEXTS[:300], "train-1": TEXTS[300:], "validation": ["held", "out"] * 40}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    return DataConfig(
        source=DataSource.hf,
        name=str(folder),
        sequence_length=LENGTH,
        cache_dir=str(tmp_path / "cache"),
        heldout_fraction=0.2,
    )


def packed(texts: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(text.encode() + b"\0" for text in texts), np.uint8)


def split(texts: list[str], side: str) -> list[str]:
    route = by_hash(0.2)
    return [text for text in texts if route(text.encode()) == side]


def check_is(stream: Any, ids: np.ndarray, n: int | None = None) -> None:
    """Its samples are the windows of `ids`, twice over, or the first `n` of them."""
    windows = (len(ids) - 1) // LENGTH
    for position in range(2 * windows) if n is None else range(n):
        start = position % windows * LENGTH
        np.testing.assert_array_equal(stream[position], ids[start : start + LENGTH + 1])


def test_samples_are_the_windows_of_the_stream_and_begin_again(data: DataConfig) -> None:
    corpus = open_hf(data, data, seed=0)
    check_is(corpus.train, packed(split(TEXTS, TRAIN)))
    check_is(corpus.heldout, packed(split(TEXTS, HELDOUT)))
    assert corpus.train[5].dtype == np.int64
    assert (corpus.separator, corpus.tokenizer, corpus.train.vocab_size) == (0, "bytes", 256)
    with pytest.raises(IndexError):
        corpus.train[-1]


def test_a_split_of_its_own_is_held_out(data: DataConfig) -> None:
    data.heldout_split = "validation"
    corpus = open_hf(data, data, seed=0)
    check_is(corpus.heldout, packed(["held", "out"] * 40))
    check_is(corpus.train, packed(TEXTS))


def test_parquet(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "parquet" / "train.parquet")
    data = replace(data, name=str(tmp_path / "parquet"), text_field="body")
    check_is(open_hf(data, data, seed=0).train, packed(split(TEXTS, TRAIN)))


def test_a_shuffle_buffer(data: DataConfig) -> None:
    data.shuffle_buffer = 50
    orders = []
    for seed in (1, 1, 2):
        documents = HfDocuments(data, "train", "data.split", 50, seed)
        pieces = list(documents.pieces(START))
        orders.append([piece.text for piece in pieces])
        assert list(documents.pieces(pieces[99].mark)) == pieces[100:]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(TEXTS) != orders[0]
    check_is(open_hf(data, data, seed=2).train, packed(split(orders[2], TRAIN)))
    assert open_hf(data, data, seed=1).fingerprint != open_hf(data, data, seed=2).fingerprint


def test_the_writer_stays_a_little_ahead_and_goes_on_when_asked(data: DataConfig) -> None:
    plan, folder = plan_text(data, data, 0), Path(data.cache_dir) / "spool"
    expected = packed(split(TEXTS, TRAIN))

    def recorded() -> int:
        progress = Progress.read(folder)
        return progress.tokens[TRAIN] if progress else 0

    options = {"ahead": 1000, "shard_tokens": 700, "batch": 400}
    writer = SpoolWriter(folder, plan, **options)
    writer.start()
    spool = Spool(folder, "it", 256, writer.start)
    stream = SpoolStream(spool, TRAIN, LENGTH, margin=0)
    check_is(stream, expected, 60)  # across shards' ends
    assert 60 * LENGTH < recorded() < 60 * LENGTH + 1000 + 500  # what was read, what is kept ahead, a batch
    check_is(stream, expected, 100)
    writer.close()
    stopped_at = recorded()
    assert 100 * LENGTH < stopped_at < len(expected) // 2
    # Another run: the same samples, and the old ones are not made again.
    first = (folder / "train-00000.bin").stat().st_mtime_ns
    again = SpoolWriter(folder, plan_text(data, data, 0), **options)
    again.start()
    check_is(SpoolStream(Spool(folder, "it", 256, again.start), TRAIN, LENGTH, margin=0), expected)
    assert (folder / "train-00000.bin").stat().st_mtime_ns == first
    again.close()


RANK = """
import sys
from pathlib import Path
from train.data.config import DataConfig, DataSource
from train.data.spool import Spool, SpoolStream
from train.data.spool_writer import SpoolWriter
from train.data.text_plan import plan_text
data = DataConfig(source=DataSource.hf, name=sys.argv[1], sequence_length=16, heldout_fraction=0.2)
folder = Path(sys.argv[2])
writer = SpoolWriter(folder, plan_text(data, data, 0), ahead=1000, batch=100)
writer.start()
stream = SpoolStream(Spool(folder, "it", 256, writer.start), "train", 16, margin=0)
print("writes" if writer._thread else "reads", flush=True)
for line in sys.stdin:
    print(bytes(stream[int(line)].tolist()).hex(), flush=True)
"""


class Rank:
    """A process with the stream open."""

    def __init__(self, data: DataConfig, folder: Path) -> None:
        command = [sys.executable, "-c", RANK, data.name, str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)

    def line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        return line or self.process.communicate(timeout=60)[1]

    def ask(self, position: int) -> bytes:
        assert self.process.stdin
        self.process.stdin.write(f"{position}\n")
        self.process.stdin.flush()
        return bytes.fromhex(self.line())


def test_the_writer_is_killed_and_another_process_goes_on(data: DataConfig, tmp_path: Path) -> None:
    folder, ids = tmp_path / "spool", packed(split(TEXTS, TRAIN))
    windows = (len(ids) - 1) // LENGTH

    def expected(position: int) -> bytes:
        return ids[position * LENGTH :][: LENGTH + 1].tobytes()

    ranks = [Rank(data, folder) for _ in range(2)]
    try:
        roles = [rank.line() for rank in ranks]
        assert sorted(roles) == ["reads", "writes"]
        reader, writer = ranks[roles.index("reads")], ranks[roles.index("writes")]
        for position in (0, 7, 40):
            assert reader.ask(position) == writer.ask(position) == expected(position)
        writer.process.send_signal(signal.SIGKILL)
        writer.process.wait()
        assert reader.ask(windows - 1) == expected(windows - 1)  # far behind what the dead one had made
        assert reader.ask(windows) == expected(0)
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.communicate()


def test_a_failure_in_the_middle_reaches_all_that_wait(data: DataConfig, tmp_path: Path) -> None:
    with (Path(data.name) / "train-1.jsonl").open("a") as file:
        file.write('{"text": null, "n": 2}\n')
    folder = tmp_path / "spool"
    writers = [SpoolWriter(folder, plan_text(data, data, 0), batch=1000) for _ in range(2)]
    streams = []
    for writer in writers:
        writer.start()
        streams.append(SpoolStream(Spool(folder, "it", 256, writer.start), TRAIN, LENGTH, margin=0))
    assert [writer._thread is not None for writer in writers] == [True, False]
    for stream in streams:
        check_is(stream, packed(split(TEXTS, TRAIN)), 100)
        with pytest.raises(DataError, match=r"dataset: record 600 has nothing in its field 'text'"):
            stream[10_000]
    for writer in writers:
        writer.close()
    # The next run, with the record mended, is not told of the old failure.
    path = Path(data.name) / "train-1.jsonl"
    path.write_text(path.read_text().replace("null", '"mended"'))
    mended = SpoolWriter(tmp_path / "spool2", plan_text(data, data, 0))
    Progress(plan_text(data, data, 0).settings, 2**27, failure="an old one").write(tmp_path / "spool2")
    mended.start()
    stream = SpoolStream(Spool(tmp_path / "spool2", "it", 256, mended.start), TRAIN, LENGTH, 0)
    check_is(stream, packed(split([*TEXTS, "mended"], TRAIN)))
    finished = Progress.read(tmp_path / "spool2")
    assert finished is not None
    assert finished.failure is None
    mended.close()


def test_a_long_wait_is_spoken_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.data.file_lock.PATIENCE_S", 0.0)
    polls = []

    def nobody_writes() -> None:
        polls.append(1)
        if len(polls) == 5:
            Progress({}, 100, tokens={TRAIN: 50, HELDOUT: 0}).write(tmp_path)

    assert Spool(tmp_path, "data.name=x", 256, nobody_writes).wait(TRAIN, 17) == (50, False)
    assert (
        capsys.readouterr().err
        == f"switchyard: waiting for tokens of data.name=x, which are being made in {tmp_path}\n"
    )


def test_a_dataset_too_short_for_a_sample(data: DataConfig) -> None:
    data.sequence_length = 10**6
    with pytest.raises(
        DataError, match=r"has \d+ tokens in all for train, and one sample takes 1000001: lower data.seq"
    ):
        open_hf(data, data, seed=0)


def test_a_split_that_holds_nothing_out_is_refused_at_the_start(data: DataConfig) -> None:
    """And not by the first evaluation, hours later."""
    data.heldout_fraction = 1e-9
    with pytest.raises(DataError, match=r"has 0 tokens in all for heldout, and one sample takes"):
        open_hf(data, data, seed=0)


def test_what_is_waited_for_comes_before_what_is_made_ahead(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split of its own is held out: its first sample must not wait until all training text is there."""
    data.heldout_split, data.heldout_fraction = "validation", DataConfig.heldout_fraction
    folder = tmp_path / "spool"
    writer = SpoolWriter(folder, plan_text(data, data, 0), batch=64)
    choose, chosen = writer._next, []

    def record(feeds: list, progress: Progress) -> Any:
        feed = choose(feeds, progress)
        chosen.append(feed.name if feed else None)
        return feed

    monkeypatch.setattr(writer, "_next", record)
    spool = Spool(folder, "these", 256, writer.start)
    try:
        spool.wait(HELDOUT, LENGTH + 1)
        assert chosen[0] == HELDOUT
        spool.wait(TRAIN, 2 * (LENGTH + 1))
        assert TRAIN in chosen
    finally:
        writer.close()
        spool.close()


def test_the_fingerprint_is_of_files_and_settings_not_of_the_place(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_hf(data, data, seed=0).fingerprint
    moved = tmp_path / "elsewhere" / "dataset"
    moved.parent.mkdir()
    Path(data.name).rename(moved)
    data.name, data.cache_dir = str(moved), str(tmp_path / "cache2")
    assert open_hf(data, data, seed=5).fingerprint == first  # without a buffer the seed draws nothing
    monkeypatch.setattr("train.data.hf_documents.SAMPLED", 100)
    seen = {open_hf(data, data, seed=0).fingerprint}
    for old, new in (("document 0:", "document 1:"), ("document 299:", "document 298:")):  # the first, and the last
        path = moved / "train-0.jsonl"
        path.write_text(path.read_text().replace(old, new))
        seen.add(open_hf(data, data, seed=0).fingerprint)
    assert len(seen) == 3


def test_as_one_of_a_mixture_and_by_the_common_door(data: DataConfig) -> None:
    part = MixturePart(source=DataSource.hf, name=data.name)
    mixture = replace(data, source=DataSource.mixture, name="mixture", mixture=[part])
    alone, mixed = (open_corpus(corpus, 256, seed=0) for corpus in (data, mixture))
    assert alone.separator == mixed.separator == 0
    assert tuple(mixed.train[3]) in {tuple(alone.train[i]) for i in range(len(packed(TEXTS)) // LENGTH)}
    with pytest.raises(DataError, match=r"data=hf needs a vocabulary of at least 256"):
        open_corpus(data, 100, seed=0)


def test_bad_datasets_are_one_line(data: DataConfig, tmp_path: Path) -> None:
    Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 and no more")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": str(tmp_path / "none")}, "none: there is no such folder"),
        ({"name": "./none"}, "data.name=./none: there is no such folder"),
        ({"name": " "}, "data.name is empty"),
        ({"name": f"{data.name}/train-0.jsonl"}, "is a file: use data=text data.path="),
        ({"name": str(tmp_path / "saved")}, r"was written by save_to_disk, .*: write it with to_parquet"),
        ({"name": str(tmp_path / "empty")}, "empty cannot be opened: "),
        ({"name": str(tmp_path / "broken")}, "broken cannot be opened: "),
        ({"split": "tset"}, "data.split=tset: .* has no such split; it has train, validation"),
        ({"heldout_split": "tset"}, "data.heldout_split=tset: .* has no such split; it has train, validation"),
        ({"subset": "en"}, r"data.subset=en: .*not found. Available: \['default'\]"),
        ({"text_field": "body"}, "no field 'body'; set data.text_field to one of text, n"),
        ({"text_field": "n"}, "field 'n' is not text but int64"),
        ({"cache_dir": f"{data.name}/train-0.jsonl"}, r"data.cache_dir=.* cannot be written to \(Not a directory\)"),
    ]
    for changed, said in cases:
        bad = replace(data, **changed)
        with pytest.raises(DataError, match=said) as refused:
            open_hf(bad, bad, seed=0)
        assert "\n" not in str(refused.value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on loopback that knows no dataset; what it was asked for."""
    asked: list[str] = []

    class Unknown(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Unknown)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_name_that_the_hub_does_not_know(data: DataConfig, hub: list[str]) -> None:
    data.name = "nobody/nothing"
    with pytest.raises(DataError, match=r"data.name=nobody/nothing: there is no such folder, and the hub") as refused:
        open_hf(data, data, seed=0)
    assert "\n" not in str(refused.value)
    assert hub[-1] == "/api/datasets/nobody/nothing"


def test_a_hub_that_is_not_there(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    data.name = "nobody/nothing"
    with pytest.raises(DataError, match=r"data.name=nobody/nothing: there is no such folder, and the hub") as refused:
        open_hf(data, data, seed=0)
    assert "\n" not in str(refused.value)


def test_two_threads_may_ask_at_once(tmp_path: Path) -> None:
    """The loader's and an evaluation's: no wish is lost, and neither takes the other's temporary file away."""
    spool = Spool(tmp_path, "a dataset", 256, lambda: None)
    failures: list[BaseException] = []

    def ask(split: str) -> None:
        try:
            for tokens in range(1, 301):
                spool.ask(split, tokens, margin=0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(split,)) for split in (TRAIN, HELDOUT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert read_wanted(tmp_path) == {TRAIN: 300, HELDOUT: 300}
