"""Deep traces of a real job: asked for by a file and by the configuration, booked apart, and seen by all ranks."""

import gzip
import json
from pathlib import Path

import pytest
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord
from harness.torchrun import start_torchrun, torchrun
from harness.worker_pool import WorkerPool

COMMON = ("model=tiny", "train.device=cpu", "train.eval_sequences=0", "checkpoint=off", "logging=off")


def test_every_n_steps_on_chosen_ranks(pool: WorkerPool, tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    words = (*COMMON, "strategy=ep", "train.steps=14", "train.log_every=5", f"run.dir={record.folder}")
    late = "faults.inject=[{what: slow, rank: 0, step: 6, place: forward, seconds: 0.5}]"
    traced = ("measure.trace_every=6", "measure.trace_ranks=[1]", "measure.trace_limit=1")
    done = job_in_pool(pool, 2, *words, late, *traced)
    assert done.returncode == 0, done.stderr
    written = sorted(str(path.relative_to(record.folder)) for path in (record.folder / "traces").rglob("*.*"))
    assert written == [
        "traces/step-00000006/rank-1.json.gz",
        "traces/step-00000006/rank-1.summary.json",
    ]
    summary = json.loads((record.folder / written[1]).read_text())
    # On the host a sweep's exposed are the clock's own brackets: each was shown to the profiler.
    assert set(summary["waited_s"]) == set(summary["exposed_by_kind_s"]) == {"dp", "ep", "control"}
    # One of them waited for the other rank. The rest are milliseconds, and a busy machine takes as long between the
    # clock's stamp and the profiler's.
    kind, seconds = max(summary["waited_s"].items(), key=lambda item: item[1])
    assert seconds > 0.3
    assert summary["exposed_by_kind_s"][kind] == pytest.approx(seconds, rel=0.05)

    rows = {row["train/step"]: row for row in record.rows if "train/loss" in row}
    assert sorted(rows) == [1, 4, 5, 6, 10, 14]  # a row before, of the warm-up, of the traced step
    for step in (5, 6):
        assert not [key for key in rows[step] if key.startswith("perf/")]
    # Writing the trace is profile, on the rank that wrote and on the one that waited for it; it comes after the row.
    assert rows[10]["time/profile_s"] > 0
    assert rows[10]["time/profile_s"] == pytest.approx(rows[10]["time_max/profile_s"], rel=0.5)
    assert "time/profile_s" not in rows[4]
    assert "time/profile_s" not in rows[14]


@pytest.mark.soak
def test_an_evaluation_is_in_no_trace_and_a_resume_goes_on_into_one(tmp_path: Path) -> None:
    """A step that is traced and evaluated; then an attempt whose second step would be traced, and one that is."""
    record = RunRecord(tmp_path / "run")
    words = ("model=tiny", "train.device=cpu", "strategy=ddp", "train.eval_sequences=8", "train.eval_every=4")
    words = (*words, "measure.trace_every=4", "checkpoint.every=3", "logging=off", f"run.dir={record.folder}")
    for steps, traced in ((6, [4]), (8, [4]), (12, [4, 12])):
        done = torchrun(2, *words, f"train.steps={steps}")
        assert done.returncode == 0, done.stderr
        assert (record.folder / "summary.json").exists()
        folders = sorted((record.folder / "traces").iterdir())
        assert [int(folder.name.removeprefix("step-")) for folder in folders] == traced
    with gzip.open(folders[0] / "rank-0.json.gz", "rt") as file:
        names = {
            event["name"] for event in json.load(file)["traceEvents"] if event.get("name", "").startswith("phase/")
        }
    assert {"phase/compute_fwd", "phase/compute_bwd", "phase/compute_opt"} <= names
    assert "phase/eval" not in names


def test_a_file_asks_for_a_trace_of_a_running_job(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    words = (*COMMON, "strategy=ddp", "train.steps=100000", "train.log_every=2", f"run.dir={record.folder}")
    with start_torchrun(2, *words) as launch:
        launch.wait_for(lambda _: record.last_step >= 4)
        (record.folder / "TRACE").touch()
        launch.wait_for(lambda _: bool(list((record.folder / "traces").rglob("rank-0.summary.json"))))
        after = record.last_step
        launch.wait_for(lambda _: record.last_step >= after + 4)
    assert not (record.folder / "TRACE").exists()
    assert len(list((record.folder / "traces").rglob("*.gz"))) == 1
