"""Two starts of a job that write into one folder, and checkpoints that take another's place."""

import errno
import os
from pathlib import Path

import pytest
from harness.worker_pool import WorkerPool

from tests.train.test_checkpoint_behind import PATIENCE_S, Gate, files, opened, train_on
from train.checkpoint.folder import clear_unfinished, put_in_place
from train.checkpoint.hooks import Hooks
from train.checkpoint.manifest import Progress
from train.faults.config import Place
from train.faults.stop import Stopped


def save_the_same_step(folder: Path) -> list[list[str]]:
    """What is there: when the second start has looked, when it has saved, and when the first one was let go on. And
    what the second reads at the end."""
    gate = Gate(Place.rename)
    there = []
    engine, first, _ = opened(folder, Hooks(attempt=1, reach=gate.reach, still_ours=lambda: False))
    first.save(engine, Progress(1, 0), keep=1)
    assert gate.reached.wait(PATIENCE_S)
    there.append(files(folder))
    train_on(engine)
    newer_engine, newer, _ = opened(folder, Hooks(attempt=2))
    newer.save(newer_engine, Progress(1, 0), keep=1)
    newer.finish(asked=1)
    there.append(files(folder))
    gate.open()
    with pytest.raises(Stopped):
        first.finish(asked=1)
    there.append(files(folder))
    assert newer.resume(newer_engine).progress.step == 1
    return there


def test_each_start_has_files_of_its_own(pool: WorkerPool, tmp_path: Path) -> None:
    of_first, final = "step-00000001.attempt-0001.tmp", "step-00000001"
    assert pool.run(1, save_the_same_step, tmp_path) == [[[of_first], [final, of_first], [final]]]


def resume_older(folder: Path) -> list[str]:
    engine, store, _ = opened(folder, Hooks(attempt=2))
    store.resume(engine)
    return files(folder)


def test_a_resume_leaves_alone_what_a_newer_start_writes(pool: WorkerPool, tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        (tmp_path / f"step-00000004.attempt-{attempt:04d}.tmp").mkdir()
    assert pool.run(1, resume_older, tmp_path) == [["step-00000004.attempt-0003.tmp"]]


def save_and_lose(folder: Path) -> list[str]:
    ours: list[bool] = []
    engine, store, _ = opened(folder, Hooks(still_ours=lambda: ours.pop(0)))
    for step in (1, 2):
        ours[:] = [True, step == 1]  # asked for the name, and then before others are dropped
        store.save(engine, Progress(step, 0), keep=1)
        store.finish(asked=step)
    return files(folder)


def test_a_start_that_lost_the_folder_drops_nothing(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(1, save_and_lose, tmp_path) == [["step-00000001", "step-00000002"]]


def made(folder: Path, what: str) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(what)
    return folder


def lost_between(folder: Path, monkeypatch: pytest.MonkeyPatch, given_back: bool) -> tuple[Path, Path]:
    """A replacement whose second rename fails (the first has left nothing in its way), and what the third one gives."""
    final, written = made(folder / "step-00000001", "old"), made(folder / "step-00000001.attempt-0001.tmp", "new")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path == written or (path.name.endswith(".old.tmp") and not given_back):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="Input/output error"):
            put_in_place(written, final)
    return final, written


def test_one_that_is_not_replaced_has_its_name_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, written = lost_between(tmp_path, monkeypatch, given_back=True)
    assert (final / "manifest.json").read_text() == "old"
    put_in_place(written, final)
    assert (final / "manifest.json").read_text() == "new"
    assert files(tmp_path) == [final.name]


def test_or_at_the_next_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, _ = lost_between(tmp_path, monkeypatch, given_back=False)
    assert not final.exists()
    clear_unfinished(tmp_path, attempt=1)
    assert files(tmp_path) == [final.name]
    assert (final / "manifest.json").read_text() == "old"
    made(tmp_path / f"{final.name}.old.tmp", "older")
    clear_unfinished(tmp_path, attempt=1)
    assert files(tmp_path) == [final.name]
    assert (final / "manifest.json").read_text() == "old"
