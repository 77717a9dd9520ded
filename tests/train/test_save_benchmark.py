"""benchmarks/async_save.py measures on CPU what it measures on GPUs, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
from harness.torchrun import torchrun


@pytest.mark.soak
def test_it_tells_what_a_save_costs(tmp_path: Path) -> None:
    words = ("model=tiny", "data=synthetic", "data.sequence_length=32", "train.device=cpu", "strategy=fsdp")
    theirs = tmp_path / "async_save" / "somebody's"
    theirs.mkdir(parents=True)
    done = torchrun(2, *words, f"run.root={tmp_path}", module="benchmarks.async_save", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    saves = [*told["behind"], told["waiting"]]
    assert len(saves) == 4
    assert len({save["bytes"] for save in saves}) == 1  # the same state's
    assert all(save["total_s"] > 0 for save in saves)
    assert told["waiting"]["blocked_s"] >= told["waiting"]["total_s"]  # of rank 0; blocked_s is the slowest's
    assert told["tokens_per_sec"] > 0
    assert all(told[load]["seconds"] > 0 for load in ("load", "load_cached"))
    assert all(save["steps_all_behind_it"] % 5 == 0 for save in told["behind"])
    assert told["disk"]["gb_per_sec"] > 0
    assert list(tmp_path.rglob("*")) == [theirs.parent, theirs]
