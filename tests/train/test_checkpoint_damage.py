"""What a resume does about checkpoints that are not what was written, on one rank and on several."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from harness.layout_run import DDP, FSDP, SINGLE
from harness.worker_pool import WorkerPool

from launch.verify.pieces import Piece, merge
from models.config import ConfigError
from parallel.config import StrategyConfig
from tests.train.test_checkpoint import arrays, build, save
from train.checkpoint.manifest import Progress, digest
from train.checkpoint.store import CheckpointStore, Resumed


def resume(strategy: StrategyConfig, folder: Path) -> tuple[Resumed | str, dict[str, Piece], str]:
    """What a resume gave or was refused with, the state then, and what was said on stderr."""
    engine, _, comm = build(strategy, seed=99)
    with redirect_stderr(io.StringIO()) as said:
        try:
            outcome: Resumed | str = CheckpointStore(folder, comm, behind=True).resume(engine)
        except ConfigError as error:
            outcome = str(error)
    return outcome, arrays(engine), said.getvalue()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reword(checkpoint: Path, old: str, new: str) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text().replace(old, new))


def empty(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda c: flip(c / "__0_0_0.distcp"), "__0_0_0.distcp is not what was written"),
    "a bit of the index": (lambda c: flip(c / ".metadata"), ".metadata is not what was written"),
    "a shard gone": (lambda c: (c / "__0_0_0.distcp").unlink(), "__0_0_0.distcp: No such file or directory"),
    "a shard cut": (lambda c: (c / "__0_0_0.distcp").write_bytes(b""), "__0_0_0.distcp has 0 of "),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "manifest.json: No such file or directory"),
    "half a manifest": (lambda c: (c / "manifest.json").write_text('{"sha'), "manifest.json: Unterminated string"),
    "another manifest": (lambda c: reword(c, '"tokens": 800', '"tokens": 900'), "manifest.json: its own hash differs"),
    "another format": (lambda c: reword(c, '"format": 2', '"format": 3'), "manifest.json: its own hash differs"),
    "nothing in it": (empty, "manifest.json: No such file or directory"),
}


CASES = [(kind, *by) for kind in DAMAGE for by in ((1, SINGLE), (2, FSDP), (4, DDP))]
OFTEN = ("a bit", "half a manifest")
"""With any number of ranks in `make test`; the others there with two."""


@pytest.mark.parametrize(
    ("kind", "ranks", "strategy"),
    [pytest.param(*case, marks=() if case[0] in OFTEN or case[1] == 2 else pytest.mark.soak) for case in CASES],
)
def test_the_one_before_counts(
    kind: str, ranks: int, strategy: StrategyConfig, pool: WorkerPool, tmp_path: Path
) -> None:
    damage, why = DAMAGE[kind]
    good = merge(pool.run(1, save, SINGLE, tmp_path, 7))
    pool.run(1, save, SINGLE, tmp_path, 8)
    damage(tmp_path / "step-00000008")
    outcomes = pool.run(ranks, resume, strategy, tmp_path)
    for resumed, _, _ in outcomes:
        assert (resumed.progress.step, resumed.progress.tokens, resumed.passed_over) == (7, 700, (8,))
    loaded = merge([state for _, state, _ in outcomes])
    for name, array in good.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    line, *others = (said for _, _, said in outcomes)
    assert others == [""] * (ranks - 1)
    assert line.startswith(f"switchyard: {tmp_path}/step-00000008 is damaged ({why}")
    assert line.endswith("): going on from step-00000007 instead; it is kept as step-00000008.damaged\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000008.damaged"]


def test_damaged_ones_of_the_same_step_are_all_kept(pool: WorkerPool, tmp_path: Path) -> None:
    for step in (7, 8, 9):
        pool.run(1, save, SINGLE, tmp_path, step)
    for step in (8, 9):
        flip(tmp_path / f"step-{step:08d}" / ".metadata")
    (resumed, _, said) = pool.run(1, resume, SINGLE, tmp_path)[0]
    assert (resumed.progress.step, resumed.passed_over) == (7, (9, 8))
    assert said.count("\n") == 2
    pool.run(1, save, SINGLE, tmp_path, 8)
    flip(tmp_path / "step-00000008" / ".metadata")
    pool.run(1, resume, SINGLE, tmp_path)
    names = ["step-00000007", "step-00000008.damaged", "step-00000008.damaged-2", "step-00000009.damaged"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("ranks", [1, 2])
def test_if_all_are_damaged_nothing_is_touched_and_nothing_starts(ranks: int, pool: WorkerPool, tmp_path: Path) -> None:
    for step in (7, 8):
        pool.run(1, save, SINGLE, tmp_path, step)
        flip(tmp_path / f"step-{step:08d}" / ".metadata")
    outcomes = pool.run(ranks, resume, FSDP, tmp_path)
    why = ".metadata is not what was written"
    each = f"step-00000008: {why}; step-00000007: {why}"
    line = f"{tmp_path} has no checkpoint that is not damaged ({each}): restore one, or start anew under another "
    assert [outcome for outcome, _, _ in outcomes] == [line + "run.name"] * ranks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000008"]


@pytest.mark.parametrize("what", ["newer", "older", "another model"])
def test_what_is_not_damaged_but_not_ours_is_refused(what: str, pool: WorkerPool, tmp_path: Path) -> None:
    """It is no reason to go on from one before."""
    pool.run(1, save, SINGLE, tmp_path, 7)
    pool.run(1, save_part if what == "another model" else save, SINGLE, tmp_path, 8)
    manifest = tmp_path / "step-00000008" / "manifest.json"
    if what == "newer":
        record = json.loads(manifest.read_text()) | {"format": 3}
        del record["sha256"]
        manifest.write_text(json.dumps({"sha256": digest(record)} | record))
    elif what == "older":
        manifest.rename(manifest.with_name("progress.json"))
    lines = {
        "newer": "has a newer format than this program reads (2): update switchyard",
        "older": "is of format 1, without hashes, and this program reads 2: move it away, or go on with the program "
        "that wrote it",
        "another model": "is of another model (model.embedding.weight is not there, and [64, 32] here): choose "
        "the model that was saved",
    }
    for outcome, _, _ in pool.run(2, resume, FSDP, tmp_path):
        assert outcome == f"{tmp_path}/step-00000008 {lines[what]}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000007", "step-00000008"]


def save_part(strategy: StrategyConfig, folder: Path, step: int) -> None:
    """Save a model without a tensor of ours."""
    engine, _, comm = build(strategy, seed=step)
    store = CheckpointStore(folder, comm, behind=False)
    weights = engine.weights()
    del weights["model.embedding.weight"]
    engine.weights = lambda: weights  # type: ignore[method-assign]
    store.save(engine, Progress(step, 0), keep=0)
    store.finish()


def test_another_rank_finds_it_too(pool: WorkerPool, tmp_path: Path) -> None:
    """Files are shared out: with as many ranks as files each looks at one."""
    pool.run(2, save, FSDP, tmp_path, 7)
    for name in ("__0_0_0.distcp", "__1_0_0.distcp", ".metadata"):
        path = tmp_path / "step-00000007" / name
        flip(path)
        for outcome, _, _ in pool.run(3, resume, DDP, tmp_path):
            assert f"step-00000007: {name} is not what was written" in outcome
        flip(path)
