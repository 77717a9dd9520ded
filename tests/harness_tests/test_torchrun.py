"""The launcher itself: it starts from anywhere, tells how a run ended, and leaves no process behind."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from harness.torchrun import REPOSITORY, TorchrunLaunch, start_torchrun, torchrun

WORKER = """
import os, subprocess, sys, time

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece: ranks write to one file

rank, what = os.environ["RANK"], sys.argv[1]
if what == "import":
    import conf
    say("rank", rank, "in", os.getcwd(), "imports", conf.__file__)
if what == "fail":
    sys.exit(f"rank {rank} gave up")
if what == "hang":
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    say("pids", os.getpid(), child.pid)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a module in it, which `-m` finds because it is started there."""
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path


def pids(launch: TorchrunLaunch) -> set[int]:
    """Workers that hang, and their children."""
    said = [line.split()[1:] for line in launch.stdout.splitlines() if line.startswith("pids ")]
    return {int(word) for words in said for word in words}


def start_hanging(folder: Path) -> TorchrunLaunch:
    launch = start_torchrun(2, "hang", module="worker", cwd=folder)
    launch.wait_for(lambda launch: len(pids(launch)) == 4)
    return launch


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_from_another_folder_finds_the_repository(folder: Path) -> None:
    done = torchrun(2, "import", module="worker", cwd=folder)
    assert done.returncode == 0, done.stderr
    package = REPOSITORY / "conf" / "__init__.py"
    assert sorted(done.stdout.splitlines()) == [f"rank {rank} in {folder} imports {package}" for rank in range(2)]


def test_a_failed_run_is_returned_and_not_waited_for(folder: Path) -> None:
    with start_torchrun(2, "fail", module="worker", cwd=folder) as launch:
        with pytest.raises(RuntimeError, match=r"ended with 1 while waited for(?s:.*)gave up"):
            launch.wait_for(lambda _: False)
        done = launch.wait()
    assert done.returncode == 1
    assert "gave up" in done.stderr
    assert done.stdout == ""
    assert done.seconds > 0


def wait_too_long(launch: TorchrunLaunch) -> None:
    with pytest.raises(TimeoutError, match=r"still ran after 0.1 s(?s:.*)pids "):
        launch.wait(0.1)


def wait_in_vain(launch: TorchrunLaunch) -> None:
    with pytest.raises(TimeoutError, match=r"not so within 0.1 s(?s:.*)pids "):
        launch.wait_for(lambda _: False, 0.1)


def leave(launch: TorchrunLaunch) -> None:
    with launch:
        pass


@pytest.mark.parametrize(
    "end", [wait_too_long, *(pytest.param(end, marks=pytest.mark.soak) for end in (wait_in_vain, leave))]
)
def test_however_it_ends_no_worker_or_child_of_one_is_left(end: Callable[[TorchrunLaunch], None], folder: Path) -> None:
    launch = start_hanging(folder)
    assert all(map(lives, pids(launch)))
    end(launch)
    assert not any(map(lives, pids(launch)))


def test_one_rank_is_killed_and_the_agent_ends_the_rest(folder: Path) -> None:
    with start_hanging(folder) as launch:
        workers = launch.worker_pids()
        assert workers.keys() == {0, 1}
        assert set(workers.values()) < pids(launch)
        with pytest.raises(KeyError):
            launch.kill_rank(2)
        launch.kill_rank(1)
        done = launch.wait(20)
    assert done.returncode == 1
    assert f"Signal 9 (SIGKILL) received by PID {workers[1]}" in done.stderr
    assert not any(map(lives, pids(launch)))
