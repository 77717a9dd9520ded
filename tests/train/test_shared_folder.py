"""Every rank sees the run folder or none goes on. Ranks that are given two folders are nodes that share no disk."""

import threading
import time
from pathlib import Path

import pytest
import torch
from harness.worker_pool import WorkerPool

import train.shared_folder
from models.config import ConfigError
from parallel.comm import Communicator
from train.shared_folder import shared_folder


def see(folders: list[Path], fill: bool = False, fail: bool = False) -> str | None:
    """Have the folder that is this rank's; what it was refused with."""
    rank = torch.distributed.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.shared_folder, "PATIENCE_S", 0.3)
        try:
            with shared_folder(folders[rank], Communicator(), rank):
                if rank == 0:
                    assert folders[rank].is_dir()
                    assert list(folders[rank].iterdir()) == []  # what was looked for is gone
                    if fill:
                        (folders[rank] / "config.yaml").touch()
                if fail:
                    raise ConfigError("later")
        except ConfigError as error:
            return str(error)
    return None


def test_a_folder_that_all_see_is_made_and_stays(pool: WorkerPool, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    assert pool.run(2, see, [folder] * 2) == [None, None]
    assert list(folder.iterdir()) == []
    assert pool.run(2, see, [folder] * 2) == [None, None]


def test_ranks_that_see_another_folder_stop_all_and_leave_nothing(pool: WorkerPool, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours" / "run", tmp_path / "theirs" / "run"
    theirs.mkdir(parents=True)
    first, *others = pool.run(3, see, [ours, ours, theirs])
    assert f"cannot see what rank 0 wrote to {ours} on " in first
    assert first.endswith("set run.dir (or run.root) to a folder on a file system that every node sees")
    assert others == [first, first.replace(str(ours), str(theirs))]
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    assert list(theirs.iterdir()) == []
    ours.mkdir(parents=True)  # of an earlier start: not ours to take away
    pool.run(2, see, [ours, theirs])
    assert list(ours.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line_on_every_rank(pool: WorkerPool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    said = f"{folder} cannot be written to (Not a directory): name another run.dir or run.root"
    assert pool.run(2, see, [folder] * 2) == [said, said]


def test_an_end_with_an_error_takes_an_empty_folder_away_and_no_other(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(2, see, [tmp_path / "a" / "run"] * 2, False, True) == ["later", "later"]
    assert list(tmp_path.iterdir()) == []
    pool.run(2, see, [tmp_path / "a" / "run"] * 2, True, True)
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["config.yaml"]


def late(folder: Path, mirror: Path) -> str | None:
    """Rank 1's view follows rank 0's, by a link that comes late, as on a network file system that remembers."""
    rank = torch.distributed.get_rank()
    link = threading.Thread(target=lambda: (time.sleep(0.5), mirror.symlink_to(folder)))
    if rank == 1:
        link.start()
    try:
        with shared_folder((folder, mirror)[rank], Communicator(), rank):
            return None
    except ConfigError as error:
        return str(error)
    finally:
        if rank == 1:
            link.join()


def test_a_node_that_sees_it_late_is_waited_for(pool: WorkerPool, tmp_path: Path) -> None:
    assert pool.run(2, late, tmp_path / "run", tmp_path / "mirror") == [None, None]
