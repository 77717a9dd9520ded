"""A checkpoint that is not what was written is passed over, loudly; one that was named ends the job by one line. What
cannot be written is one line too. Jobs from their command lines; test_checkpoint_damage.py has the rest."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import REPOSITORY, CompletedRun, TorchrunLaunch, torchrun

from train.metrics.jsonl import METRICS_FILE, read_jsonl

WORDS = ("model=tiny", "train.device=cpu", "train.eval_sequences=0", "logging=off")


def lines_of(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("switchyard: ")]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.soak  # without a job: test_checkpoint_damage.py
def test_a_resume_passes_over_a_flipped_bit(
    trained: Callable[[str], RunRecord], words_of: Callable[[str], tuple[str, ...]], tmp_path: Path
) -> None:
    broken = RunRecord(Path(shutil.copytree(trained("fsdp fp64").folder, tmp_path / "run", symlinks=True)))
    checkpoints = broken.folder / "checkpoints"
    flip(checkpoints / "step-00000020" / "__1_0_0.distcp")  # rank 1's: what is wrong there must be known on rank 0
    done = torchrun(2, *words_of("fsdp fp64"), "train.steps=22", f"run.dir={broken.folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines_of(done.stderr) == [
        f"switchyard: {checkpoints}/step-00000020 is damaged (__1_0_0.distcp is not what was written): going on from "
        "step-00000015 instead; it is kept as step-00000020.damaged"
    ]
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["step-00000020", "step-00000020.damaged", "step-00000022"]
    first, again = (row["train/loss"] for row in broken.rows if row["train/step"] == 16)
    assert first == again
    written = (broken.folder / "ledger" / "attempt-0002" / "rank-00001.jsonl").read_text().splitlines()
    (resumed,) = (event for event in map(json.loads, written) if event["ev"] == "resumed")
    assert (resumed["step"], resumed["passed_over"]) == (15, [20])


@pytest.mark.soak
def test_a_checkpoint_that_was_named_is_refused(trained: Callable[[str], RunRecord], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained("fsdp fp64").folder, broken)
    shard = broken / "checkpoints" / "step-00000020" / "__1_0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:100])
    words = (*WORDS, "strategy=fsdp", "precision=fp64", "train.steps=2", f"model.init_from={broken}")
    done = torchrun(2, *words, f"run.dir={tmp_path / 'new'}", cwd=tmp_path)
    assert done.returncode != 0
    (line,) = lines_of(done.stderr)
    assert line.startswith(f"switchyard: {shard.parent} is damaged (__1_0_0.distcp has 100 of ")
    assert "train/checkpoint" not in done.stderr  # torchrun prints a stack of its own, none of ours


def on_a_small_disk(kib: int, nproc: int, cwd: Path, *words: str) -> CompletedRun:
    """A job where no file may be larger than that."""
    words = (*WORDS, f"strategy={'single' if nproc == 1 else 'fsdp'}", *words)
    start = f"-m torch.distributed.run --standalone --nproc-per-node {nproc} -m train {' '.join(words)}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    limited = ["bash", "-c", f"ulimit -f {kib}; exec {sys.executable} {start}"]
    with TorchrunLaunch(limited, cwd, environment) as launch:
        return launch.wait()


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_checkpoint_that_cannot_be_written_is_one_line_too(nproc: int, tmp_path: Path) -> None:
    """A limit of 200 KiB a file stands for a full disk; the first checkpoint's files are larger."""
    folder = tmp_path / "run"
    done = on_a_small_disk(200, nproc, tmp_path, "train.steps=2", f"run.dir={folder}")
    assert done.returncode != 0
    (line,) = lines_of(done.stderr)
    assert line.startswith(f"switchyard: {folder}/checkpoints/step-00000002 cannot be written (rank ")
    assert line.endswith(": File too large): make room there")
    assert list((folder / "checkpoints").iterdir()) == []  # nothing half-written counts as done, or is left


@pytest.mark.soak
def test_metrics_and_books_that_find_no_room_end_no_job(tmp_path: Path) -> None:
    """What stands for a full disk has room for the first rows; the others are lost, and that is said."""
    folder = tmp_path / "run"
    # More steps, and what the job says would find no room either: it goes to a file, too.
    words = ("checkpoint=off", "train.steps=60", "train.log_every=1", f"run.dir={folder}")
    done = on_a_small_disk(8, 2, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    lines = lines_of(done.stderr)
    for path in (folder / METRICS_FILE, *(folder / "ledger" / "attempt-0001").glob("rank-*")):
        waits, lost = (line for line in lines if line.startswith(f"switchyard: {path}"))
        assert waits.endswith("its lines wait in memory until it can")
        assert lost.endswith("are lost")
    assert "Traceback" not in done.stderr
    assert len(read_jsonl(folder / METRICS_FILE)) > 2
