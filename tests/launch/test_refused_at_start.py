"""A wrong job as a user starts it: one line, code 2, at once, whichever program it was given to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.torchrun import REPOSITORY, torchrun

SAID = "switchyard: unknown key 'train.stepz'; did you mean train.steps?\n"


def start(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python command…`, far from the repository; -P, since a console script does not look into its folder either."""
    return subprocess.run(
        [sys.executable, "-P", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("module", [["train"], ["launch.cli", "train", "nproc=2"]], ids=["train", "switchyard"])
def test_one_line_and_code_2(module: list[str], tmp_path: Path) -> None:
    done = start(tmp_path, "-m", *module, "train.stepz=3")
    assert (done.returncode, done.stderr, done.stdout) == (2, SAID, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak  # of two nodes' torchruns: tests/train/test_nodes.py
def test_torchrun_gives_the_cause_once_more_in_its_summary(tmp_path: Path) -> None:
    done = torchrun(2, "train.stepz=3", cwd=tmp_path)
    assert done.returncode == 1  # torchrun's own
    assert done.seconds < 90  # nobody waited for a peer, which takes ten minutes
    printed, _, summary = done.stderr.partition("train FAILED")
    assert [line for line in printed.splitlines() if line.startswith("switchyard")] == [SAID.strip()]
    assert summary.count(SAID.strip()) == 1
    assert "Traceback" not in summary
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_ranks_can_refuse_is_code_2_too(tmp_path: Path) -> None:
    """Another job's folder; with a train.py of the user's in the way, which must not be taken for ours."""
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("model: {name: tiny}\nenvironment: {corpus_sha256: x}\n")
    done = start(tmp_path, "-m", "launch.cli", "train", "nproc=2", "model=small", "run.dir=old")
    assert done.returncode == 2, done.stderr
    assert [line[:11] for line in done.stderr.splitlines() if not line.startswith(("W", "E"))] == ["switchyard:"]
    assert "holds a run with" in done.stderr
