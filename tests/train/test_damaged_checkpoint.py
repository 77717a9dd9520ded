"""A checkpoint whose tensors are broken ends a job by one line, on however many ranks: nothing overwrites it."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import REPOSITORY, TorchrunLaunch, torchrun

WORDS = ("model=tiny", "train.device=cpu", "train.eval_sequences=0", "logging=off", "strategy=fsdp", "precision=fp64")


@pytest.mark.parametrize("purpose", ["resume", "init_from"])
def test_two_ranks_say_it_once(purpose: str, trained: Callable[[str], RunRecord], words_of, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained("fsdp fp64").folder, broken)
    shard = broken / "checkpoints" / "step-00000020" / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:100])  # rank 1's: what is wrong there must be known on rank 0
    before = sorted(path.name for path in (broken / "checkpoints").iterdir())
    if purpose == "resume":
        words = (*words_of("fsdp fp64"), "train.steps=25", f"run.dir={broken}")
    else:
        words = (*WORDS, "train.steps=2", f"model.init_from={broken}", f"run.dir={tmp_path / 'new'}")
    done = torchrun(2, *words, cwd=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("switchyard: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"switchyard: {shard.parent} is damaged (rank ")
    assert "checkpoint.py" not in done.stderr  # torchrun prints a stack of its own, none of ours
    assert sorted(path.name for path in (broken / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_checkpoint_that_cannot_be_written_is_one_line_too(nproc: int, tmp_path: Path) -> None:
    """A limit of 200 KiB a file stands for a full disk; the first checkpoint's files are larger."""
    folder = tmp_path / "run"
    strategy = "single" if nproc == 1 else "fsdp"
    words = " ".join((*WORDS[:-2], f"strategy={strategy}", "train.steps=2", f"run.dir={folder}"))
    start = f"-m torch.distributed.run --standalone --nproc-per-node {nproc} -m train {words}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with TorchrunLaunch(
        ["bash", "-c", f"ulimit -f 200; exec {sys.executable} {start}"], tmp_path, environment
    ) as launch:
        done = launch.wait()
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("switchyard: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"switchyard: {folder}/checkpoints/step-00000002 cannot be written (rank ")
    assert not list((folder / "checkpoints").glob("step-????????"))  # nothing half-written counts as done
