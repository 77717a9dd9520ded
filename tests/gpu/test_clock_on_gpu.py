"""The phase clock on CUDA events, and its brackets beside the sweep of the same step's trace."""

import json
import time
from pathlib import Path

import pytest
import torch
from harness.torchrun import torchrun

from parallel.clock.phase_clock import Phase, PhaseClock
from parallel.clock.time_source import CudaTime
from parallel.comm_kind import CommKind

pytestmark = pytest.mark.gpu
JOB = (
    "model=moe_5b",
    "model.n_layers=3",
    "precision=bf16",
    "optim=adamw_large",
    "data=synthetic",
    "train.eval_sequences=0",
    "train.global_batch_size=4",
    "train.steps=12",
    "train.log_every=4",
    "checkpoint=off",
    "logging=off",
    "measure.trace_every=10",
)


def busy(a: torch.Tensor, out: torch.Tensor, n: int) -> None:
    """Keep the current stream at work for some milliseconds, without waiting for it, nor asking for memory."""
    for _ in range(n):
        torch.mm(a, a, out=out)


def test_phases_are_the_devices_and_not_the_hosts() -> None:
    clock = PhaseClock(CudaTime())
    side = torch.cuda.Stream()
    a, here, there = (torch.ones(4096, 4096, device="cuda") for _ in range(3))
    busy(a, here, 5)
    with torch.cuda.stream(side):  # cuBLAS takes memory for each stream, the first time
        busy(a, there, 5)
    torch.cuda.synchronize()
    clock.end_window()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    host_s = time.perf_counter()
    clock.enter(Phase.data_wait)
    clock.enter(Phase.compute_fwd)
    busy(a, here, 20)
    with torch.cuda.stream(side):
        busy(a, there, 60)
        done = side.record_event()
    with clock.waiting(CommKind.ep, "all_to_all", None):
        torch.cuda.current_stream().wait_event(done)
    clock.enter(Phase.compute_opt)
    busy(a, here, 10)
    clock.enter(Phase.log)
    end.record()
    enqueued_s = time.perf_counter() - host_s
    window = clock.end_window()
    total_s = begin.elapsed_time(end) * 1e-3
    assert enqueued_s < 0.5 * total_s, "nothing waited for the device"
    phases_s = sum(window.phase_s.values())
    assert phases_s >= 0.999 * total_s, "the window holds what was begun and ended in it"
    assert phases_s == pytest.approx(window.wall_s, rel=0.02, abs=1e-3)
    (wait,) = window.waits
    assert 0 < wait.seconds < window.phase_s[Phase.compute_fwd]


@pytest.mark.parametrize(
    ("strategy", "kinds"), [("fsdp", "fsdp"), ("zero1", "dp"), ("ep", "dp ep"), ("tp", "dp tp"), ("pp", "pp")]
)
def test_brackets_are_what_the_trace_shows(strategy: str, kinds: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    done = torchrun(2, *JOB, f"strategy={strategy}", f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "traces").rglob("rank-0.summary.json")
    summary = json.loads(path.read_text())
    assert summary["unknown_kinds_s"] == {}
    bracketed, swept = summary["waited_s"], summary["stream_waits_s"]
    assert set(bracketed) == {*kinds.split(), "control"}
    for kind in bracketed | swept:
        assert swept.get(kind, 0.0) == pytest.approx(bracketed.get(kind, 0.0), rel=0.05, abs=1e-3), kind
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]  # the last one has the books alone
    for row in rows[1:]:
        assert abs(row["time/other_s"]) < 0.01 * row["time/wall_s"]
    assert rows[-1]["power/watts"] > 0


def test_a_job_runs_with_nvtx_ranges(tmp_path: Path) -> None:
    """Without a tool that listens NVTX tells nothing; what it is told is tested without a GPU."""
    done = torchrun(1, "model=tiny", "strategy=single", "train.steps=3", "measure.nvtx=true", f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
