"""Whole jobs in which something goes wrong on purpose: where it shows, and what the job does about it."""

import json
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord, reproducible
from harness.torchrun import CompletedRun, torchrun
from harness.worker_pool import WorkerPool

JOB = ("model=tiny", "train.device=cpu", "train.steps=12", "train.eval_sequences=0", "checkpoint.every=4")
JOB += ("optim.warmup_steps=5", "logging=off")
SLEPT = {"data": "data_wait", "forward": "compute_fwd", "backward": "compute_bwd", "optimizer": "compute_opt"}
"""Buckets, by place."""
SECONDS = 0.2


def inject(*faults: str) -> str:
    return f"faults.inject=[{', '.join(faults)}]"


SLOW = [f"{{what: slow, rank: 1, step: {4 + i}, place: {p}, seconds: {SECONDS}}}" for i, p in enumerate(SLEPT)]
SLOW += [f"{{what: slow, rank: 1, step: 8, place: save, seconds: {SECONDS}}}"]
BAD = ["{what: non_finite, rank: 1, step: 6}", "{what: non_finite, rank: 0, step: 7}"]
NO_CHECKPOINT = "{what: corrupt, rank: 1, step: 6}"  # nothing is saved there
NEVER_FINITE = 2 * ["{what: non_finite, step: 8}", "{what: non_finite, step: 9}"]
JOBS: dict[str, tuple[str, ...]] = {
    "clean": ("train.log_every=1",),
    # Rows of steps 5 and 10 apart: it learns of step 7 in step 8, goes back to 4 and does 5 to 8 again.
    "rolled back": ("train.log_every=5", "recovery.non_finite_in_a_row=2", inject(*SLOW, *BAD, NO_CHECKPOINT)),
    # The save after step 8 is owed, and nothing more to the job that goes back: what was saved before is kept.
    "diverged": ("recovery.non_finite_in_a_row=2", "recovery.rollbacks=1", inject(*NEVER_FINITE)),
    # In step 6 it learns of step 5, while the checkpoint of step 4 is still being written.
    "failed": (
        "recovery.non_finite=fail",
        inject("{what: slow, rank: 1, step: 4, place: write, seconds: 2}", "{what: non_finite, step: 5}"),
    ),
    # The save after step 4 is owed until step 5.
    "crashed": (
        "train.log_every=1",
        "overlap.checkpoint=false",
        inject("{what: non_finite, step: 4}", "{what: crash, rank: 1, step: 6, place: optimizer}"),
    ),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, pool: WorkerPool) -> Callable[[str], tuple[CompletedRun, RunRecord]]:
    """By torchrun the jobs of whose end torchrun has something to say."""

    @cache
    def run(name: str) -> tuple[CompletedRun, RunRecord]:
        record = RunRecord(tmp_path_factory.mktemp("run") / "run")
        launch = torchrun if name in ("diverged", "failed") else partial(job_in_pool, pool)
        return launch(2, *JOB, *JOBS[name], f"run.dir={record.folder}"), record

    return run


Job = Callable[[str], tuple[CompletedRun, RunRecord]]


def events(record: RunRecord, rank: int, kind: str) -> list[dict[str, Any]]:
    lines = (record.folder / f"ledger/attempt-0001/rank-{rank:05d}.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["ev"] == kind]


def rows_of_steps(record: RunRecord) -> list[dict[str, Any]]:
    """Without the books' own one at the end."""
    return [row for row in record.rows if "train/loss" in row]


def stamps(record: RunRecord, rank: int) -> list[dict[str, Any]]:
    path = record.folder / f"faults/attempt-0001-rank-{rank:05d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.soak
def test_a_job_that_went_back_ends_as_one_that_never_had_to(job: Job) -> None:
    """Rows and the last checkpoint, to the bit."""
    done, record = job("rolled back")
    assert done.returncode == 0, done.stderr
    assert "steps 6 to 7 were not finite: went back to the checkpoint after step 4\n" in done.stdout
    # Rows are as far apart as is asked, at saves, and where the job learns that it must go back.
    trained = rows_of_steps(record)
    assert [row["train/step"] for row in trained] == [1, 4, 5, 8, 5, 8, 10, 12]
    assert record.column("train/skipped_steps") == [0, 0, 0, 2, 0, 0, 0, 0]
    clean, clean_record = job("clean")
    assert clean.returncode == 0, clean.stderr
    rows = {row["train/step"]: reproducible(row) for row in rows_of_steps(clean_record)}
    for row in trained[-4:]:
        assert reproducible(row) == rows[row["train/step"]]
    expected, got = clean_record.tensors(12), record.tensors(12)
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(got[key], tensor), key


def test_a_fault_that_did_not_happen_is_said(job: Job) -> None:
    done, _ = job("rolled back")
    assert done.stderr == "switchyard: faults.inject: on rank 1 these did not happen: corrupt of step 6\n"


def test_the_ledger_has_what_was_left_out_and_where_it_went_back(job: Job) -> None:
    _, record = job("rolled back")
    for rank in (0, 1):
        assert [event["step"] for event in events(record, rank, "skipped")] == [6, 7]
        assert [(e["step"], e["cause"]) for e in events(record, rank, "rollback")] == [(4, "non_finite")]
        tiles = events(record, rank, "tile")
        assert [(tile["first"], tile["last"]) for tile in tiles if "first" in tile] == [
            (1, 1),
            (2, 4),
            (5, 5),
            (6, 8),
            (5, 5),
            (6, 8),
            (9, 10),
            (11, 12),
        ]
        assert all(tile["begin"] == before["t"] for before, tile in pairwise(tiles))
        assert [list(tile["buckets"]) for tile in tiles].count(["ckpt_load"]) == 2  # the first looked for one


def test_a_slow_rank_is_slow_where_it_says(job: Job) -> None:
    """The sleep is in the bucket of its place, in the first tile that has the step."""
    _, record = job("rolled back")
    slept = [stamp for stamp in stamps(record, 1) if stamp["what"] == "slow"]
    assert [(stamp["place"], stamp["step"]) for stamp in slept] == [*zip(SLEPT, (4, 5, 6, 7), strict=True), ("save", 8)]
    for stamp in slept:
        assert stamp["end"] - stamp["begin"] >= SECONDS * 1e9
        tile = next(t for t in events(record, 1, "tile") if t["begin"] <= stamp["begin"] and stamp["end"] <= t["t"])
        bucket = SLEPT.get(stamp["place"], "ckpt_save")
        assert tile["buckets"][bucket] >= SECONDS * 1e9
        if stamp["place"] in SLEPT:
            assert tile["first"] <= stamp["step"] <= tile["last"]
    spoilt = [(stamp["what"], stamp["step"]) for rank in (0, 1) for stamp in stamps(record, rank)]
    assert [what for what in spoilt if what[0] == "non_finite"] == [("non_finite", 7), ("non_finite", 6)]


@pytest.mark.soak
def test_a_job_that_diverges_again_and_again_ends_with_one_line(job: Job) -> None:
    done, record = job("diverged")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("switchyard:")]
    assert len(said) == 1
    assert said[0].startswith("switchyard: steps 8 to 9 were not finite, and recovery.rollbacks=1 did not help: the")
    assert "exitcode  : 3" in done.stderr
    assert "train/__main__.py" not in done.stderr, "a traceback"
    for rank in (0, 1):
        ((exit_,),) = [events(record, rank, "exit")]
        assert (exit_["cause"], exit_["code"]) == ("diverged", 3)
    assert record.saved_steps == [4]


@pytest.mark.soak
def test_a_job_that_is_to_fail_does_so_with_its_last_checkpoint_whole(job: Job) -> None:
    done, record = job("failed")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("switchyard:")]
    assert [line.partition(";")[0] for line in said] == [
        "switchyard: step 5: the loss or the gradient norm is not finite"
    ]
    assert record.saved_steps == [4]
    (committed,) = events(record, 0, "committed")
    (skipped,) = events(record, 0, "skipped")
    assert skipped["t"] < committed["t"], "the save was over before: this has shown nothing"


@pytest.mark.soak
def test_a_crash_names_its_rank_and_place(job: Job) -> None:
    done, record = job("crashed")
    assert done.returncode != 0
    assert "InjectedFault: faults.inject: rank 1 crashes at optimizer, step 6" in done.stderr
    assert record.column("train/step") == [1, 2, 3, 4, 5]
    ((stamp,),) = [stamps(record, 1)]
    (exit_,) = events(record, 1, "exit")
    assert (exit_["cause"], exit_["code"]) == ("failed", 1)
    assert stamp["begin"] < exit_["t"]
    assert "end" not in stamp


def test_a_step_that_was_left_out_is_no_place_to_come_back_to(job: Job) -> None:
    _, record = job("crashed")
    assert record.column("train/skipped_steps") == [0, 0, 0, 1, 0]
    assert record.saved_steps == [5]


def test_off_leaves_no_trace(job: Job) -> None:
    _, record = job("clean")
    assert not Path(record.folder, "faults").exists()
    assert set(record.column("train/skipped_steps")) == {0}
