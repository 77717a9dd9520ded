"""The profiler's life cycle: two real ranks, and what may go wrong with the files."""

import gc
import json
import logging
import weakref
from pathlib import Path

import pytest
import torch
from harness.traced_step import traced_step
from harness.worker_pool import WorkerPool
from torch.profiler import record_function

from train.trace.chrome import read_trace
from train.trace.reduce import sweep_file
from train.trace.tracer import Tracer


def test_each_rank_leaves_a_trace_and_its_summary(pool: WorkerPool, tmp_path: Path) -> None:
    pool.run(2, traced_step, str(tmp_path))
    folder = tmp_path / "traces" / "step-00000001"
    files = {path.name for path in folder.iterdir()}
    assert files == {"rank-0.json.gz", "rank-0.summary.json", "rank-1.json.gz", "rank-1.summary.json"}
    for rank in (0, 1):
        summary = json.loads((folder / f"rank-{rank}.summary.json").read_text())
        assert summary["source"] == "host ranges"
        assert summary["exposed_by_kind_s"].keys() == {"ep", "dp"}
        ranges = [each.name for each in read_trace(folder / f"rank-{rank}.json.gz").ranges]
        assert ranges.count("phase/compute_bwd") == 1
        assert summary["compute_by_category_s"]["compute_bwd"] >= 0.05, "it slept as long"
        assert summary["both_s"] > 0
        assert summary["unknown_kinds_s"] == {}
        assert sweep_file(folder / f"rank-{rank}.json.gz").span_s == summary["span_s"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_trace_that_cannot_be_swept_is_kept_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ranges: bool
) -> None:
    tracer = Tracer(tmp_path, 3, torch.device("cpu"))
    path = trace_a_step(tracer, step=7, name="phase/compute_fwd" if ranges else "mine")
    assert path == tmp_path / "traces" / "step-00000007" / "rank-3.json.gz"
    assert path.exists()
    assert (path.parent / "rank-3.summary.json").exists() == ranges
    assert [record.levelno for record in caplog.records] == ([] if ranges else [logging.WARNING])
    if not ranges:
        assert "trace of step 7" in caplog.messages[0]
        assert "has neither GPU kernels nor" in caplog.messages[0]
        assert "\n" not in caplog.messages[0]


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "traces").write_text("in the way")
    tracer = Tracer(tmp_path, 0, torch.device("cpu"))
    assert not trace_a_step(tracer, step=1, name="phase/compute_fwd").exists()
    assert len(caplog.records) == 1
    (tmp_path / "traces").unlink()
    assert trace_a_step(tracer, step=2, name="phase/compute_fwd").exists(), "and the next trace is as good as ever"


@pytest.mark.parametrize("writable", [True, False])
def test_no_events_stay_in_memory(tmp_path: Path, writable: bool) -> None:
    if not writable:
        (tmp_path / "traces").write_text("in the way")
    tracer = Tracer(tmp_path, 0, torch.device("cpu"))
    tracer.begin()
    tracer.step()
    assert tracer._profile is not None
    events = weakref.ref(tracer._profile.profiler)
    gc.disable()  # as training loops do
    try:
        tracer.end(1)
        assert events() is None
    finally:
        gc.enable()


def trace_a_step(tracer: Tracer, step: int, name: str) -> Path:
    tracer.begin()
    tracer.step()
    with record_function(name):
        torch.ones(8).add_(1)
    return tracer.end(step)
