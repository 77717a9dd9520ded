"""Whatever the ledger: the buckets sum to the total exactly, none but the residual is negative, nothing raises."""

import os
import random
import shutil
from pathlib import Path

import pytest
from harness.ledger_builder import Rank, books_of

from models.config import ConfigError
from train.ledger.books import Books
from train.ledger.fold import fold
from train.ledger.read import read_ledger

PHASES = ("data_wait", "compute_fwd", "log", "eval", "ckpt_save", "ckpt_load", "init_model", "of another version")
CAUSES = ("finished", "preempted", "stopped", "failed", "refused", "diverged", "fenced", "lost_peers", "interrupted")


def write_random(run: Path, seed: int) -> None:
    """Some attempts of some ranks on some hosts that begin, get on and end in every way, in odd nanoseconds."""
    chance = random.Random(seed)
    at, step = 0.0, 0
    for attempt in range(1, chance.randint(2, 5)):
        ranks = chance.randint(1, 3)
        begin, after = at + chance.uniform(-3, 20), chance.randint(0, step)
        saved = after
        for rank in range(ranks):
            if rank and chance.random() < 0.1:
                continue
            boot = chance.choice(("boot-a", "boot-b"))
            one = Rank(run, attempt, rank)
            launched = chance.choice((None, begin - 1.5))
            process, main, joined = (begin + chance.uniform(0, 1) for _ in range(3))
            told = {"boot": boot, "launched": launched, "wall": chance.randint(-9, 9), "layout": chance.choice("xy")}
            one.start(process, main, joined, ranks=ranks, **told)
            one.tile(init_model=chance.random())
            if chance.random() < 0.8:
                one.event("resumed", step=after, passed_over=chance.choice(([], [after + 1])))
            step = after
            for _ in range(chance.randint(0, 6)):
                write_some(one, chance, step)
                step += 2
                if chance.random() < 0.3:
                    saved = step
                    one.event("saving", step=step).tile(ckpt_save=chance.random()).committed(saved)
            if chance.random() < 0.5:
                one.exit(chance.choice(CAUSES), one.now + chance.random())
            for watched in (one.hang, one.gone):
                if chance.random() < 0.3:
                    beat = one.now + chance.uniform(-2, 2)
                    watched(one.now + chance.uniform(0, 5), chance.choice(PHASES), step, beat)
            at = max(at, one.now)


def write_some(one: Rank, chance: random.Random, step: int) -> None:
    """Two steps and what comes with them."""
    seconds = chance.uniform(0.1, 9), chance.uniform(0.1, 3)
    whole = sum(seconds) * chance.uniform(0.8, 1.3)
    parts = {"compute_fwd": whole * 0.3, "exposed_comm__ep": whole * 0.4, "compute_opt": whole * 0.3 - 0.001}
    one.steps(step + 1, *seconds, **parts, log=chance.random(), wall=whole * chance.uniform(0.9, 1.5))
    if chance.random() < 0.3:
        one.event("skipped", step=step + chance.randint(0, 3))
    if chance.random() < 0.1:
        one.event("rollback", step=chance.randint(0, step), cause="nan")
    if chance.random() < 0.2:
        one.tile(eval=chance.random())


def check(books: Books) -> None:
    buckets = books.buckets
    assert sum(buckets.values()) == books.total
    assert all(isinstance(ns, int) for ns in buckets.values())
    assert all(ns >= 0 for name, ns in buckets.items() if name != "other"), buckets
    assert 0 <= books.ettr <= books.ettr_optimistic <= 1.01
    assert sum(books.counted.values()) == sum(sum(attempt.counted.values()) for attempt in books.attempts)
    assert 0 <= books.ettr_durable <= books.ettr
    if books.mfu_in_step is not None:
        assert books.speed_of_light == pytest.approx(books.ettr * books.mfu_in_step)
    assert books.as_json()["rank_seconds"] == pytest.approx(sum(books.as_json()["buckets"].values()))


@pytest.mark.parametrize("seed", range(60))
def test_random_ledgers(seed: int, tmp_path: Path) -> None:
    write_random(tmp_path, seed)
    check(books_of(tmp_path))
    check(books_of(tmp_path, now=10_000))


def test_what_is_in_the_books_does_not_hang_on_the_order_of_files(tmp_path: Path) -> None:
    write_random(tmp_path / "a", 3)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.jsonl"))
    for path in reversed(files):
        (tmp_path / "b" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "a" / path, tmp_path / "b" / path)
    assert books_of(tmp_path / "a") == books_of(tmp_path / "b")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_ledger_cut_off_at_any_byte(seed: int, tmp_path: Path) -> None:
    """Every file in turn, at every byte of its last 150 and at some of the others."""
    write_random(tmp_path, seed)
    for path in sorted(tmp_path.rglob("*.jsonl")):
        size = path.stat().st_size
        whole = path.read_bytes()
        for length in [*range(0, size, 211), *range(max(0, size - 150), size)]:
            os.truncate(path, length)
            try:
                check(books_of(tmp_path))
            except ConfigError as error:
                assert "no rank has written its start" in str(error)  # noqa: PT017  # the only start was cut off
            path.write_bytes(whole)


def test_lines_that_are_none_of_ours_are_counted(tmp_path: Path) -> None:
    one = Rank(tmp_path, 1).start(0, 1, 2)
    before = books_of(tmp_path)
    path = next(tmp_path.rglob("rank-*.jsonl"))
    foreign = [b'{"ev":"tile","t":5}', b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"ev":"exit","t":true,"cause":"failed"}']
    foreign += [b'{"ev":"tile","t":5,"begin":4,"buckets":{"eval":1},"first":3,"last":2,"step_ns":[]}', b'{"ev":"start"']
    foreign += [b'{"ev":"committed","t":5,"step":1,"bytes":1,"seconds":NaN}', b'{"ev":"exit","t":5,"cause":"failed"}']
    foreign += [b'{"ev":"committed","t":5,"step":1,"bytes":1,"seconds":1' + b"0" * 400 + b"}"]
    path.write_bytes(path.read_bytes() + b"\n".join(foreign) + b"\n\n")
    one.event("of another version", anything=[1])
    (path.parent / "notes.txt").write_text("mine")
    books = books_of(tmp_path)
    assert books.dropped_lines == len(foreign)
    assert books.buckets == before.buckets


def test_an_attempt_that_left_nothing_is_noted(tmp_path: Path) -> None:
    Rank(tmp_path, 1).start(0, 1, 2).exit("finished")
    Rank(tmp_path, 2)
    Rank(tmp_path, 3).start(9, 10, 11)
    books = books_of(tmp_path)
    assert [attempt.number for attempt in books.attempts] == [1, 3]
    assert "attempt 2 left nothing" in books.notes[0]


def test_what_has_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no ledger/ of a start: name the folder of a run that began$"):
        read_ledger(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        read_ledger(tmp_path / "gone")
    Rank(tmp_path, 1)
    with pytest.raises(ConfigError, match="no rank has written its start to the ledger yet"):
        fold(read_ledger(tmp_path))
