"""Ranks and their launcher: which parents may be gone, and a launcher that is process 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.torchrun import REPOSITORY

ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}
CHILD = (
    "import sys; sys.stdin.read(); from train.faults.parent import die_with_parent; die_with_parent(); print('lives')"
)
NEW_PIDS = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
"""Runs a program as process 1 of a container, for which it takes root."""


def child_of(script: str, *before: str) -> str:
    """What CHILD says, started by a shell's `script` as "$@"."""
    words = [*before, "bash", "-c", script, "bash", sys.executable, "-c", CHILD]
    return subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=30).stdout


def can_unshare() -> bool:
    try:
        return subprocess.run([*NEW_PIDS, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def test_with_its_parent_it_lives() -> None:
    assert child_of('"$@" < /dev/null; true') == "lives\n"


@pytest.mark.soak
@pytest.mark.skipif(not can_unshare(), reason="takes root")
def test_whose_parent_was_gone_before_it_asked_does_not() -> None:
    """Process 1, a shell, has adopted it: it is told to go on when the one that started it has ended."""
    orphan = '(("$@" < <(sleep 0.5) > /dev/stdout) &); sleep 2'
    assert child_of(orphan, *NEW_PIDS) == ""
    # The same without its asking: it is the child that ends, and not the container.
    asks_not = orphan.replace('"$@"', '"$1" -c "import sys; sys.stdin.read(); print(7)"')
    assert child_of(asks_not, *NEW_PIDS) == "7\n"


@pytest.mark.skipif(not can_unshare(), reason="takes root")
def test_a_python_that_is_process_1_may_be_a_parent() -> None:
    first = (sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL)")
    done = subprocess.run(
        [*NEW_PIDS, *first, sys.executable, "-c", CHILD], env=ENVIRONMENT, capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "lives\n"


def test_a_rank_asks_before_it_imports_torch() -> None:
    script = (
        "import sys, train.faults.parent as parent; parent.die_with_parent = lambda: print('torch' in sys.modules); "
        "import train.__main__"
    )
    environment = ENVIRONMENT | {"TORCHELASTIC_RUN_ID": "none"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


@pytest.mark.soak
@pytest.mark.skipif(not can_unshare(), reason="takes root")
def test_torchrun_may_be_process_1(tmp_path: Path) -> None:
    words = ("model=tiny", "strategy=single", "train.device=cpu", "train.steps=2", "logging=off", f"run.dir={tmp_path}")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    done = subprocess.run(
        [*NEW_PIDS, *torchrun, "-m", "train", *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "summary.json").exists()
