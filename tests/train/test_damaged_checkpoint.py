"""A checkpoint whose tensors are broken ends a job by one line, on however many ranks: nothing overwrites it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import torchrun

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
