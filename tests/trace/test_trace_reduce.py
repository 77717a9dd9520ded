"""Traces to sweeps: DeepSeek-V3's published profile, one of a device made by hand, one of two gloo ranks."""

import gzip
import json
import os
from pathlib import Path

import pytest

from train.trace.chrome import TraceError
from train.trace.kernels import UnknownCommunication
from train.trace.reduce import sweep_file

DATA = Path(__file__).parent / "data"
DEEPSEEK = Path(
    os.environ.get("DEEPSEEK_V3_TRACE")
    or Path(__file__).resolve().parents[2].parent / "shared" / "data" / "deepseek_v3_train_trace.json.xz"
)


@pytest.mark.skipif(not DEEPSEEK.exists(), reason="DeepSeek-V3's trace is not here (DEEPSEEK_V3_TRACE=FILE)")
def test_deepseek_v3() -> None:
    swept = sweep_file(DEEPSEEK)
    ms = {
        name: round(getattr(swept, f"{name}_s") * 1e3, 1)
        for name in ("span", "communication", "compute", "both", "exposed", "idle")
    }
    assert ms == {"span": 129.0, "communication": 113.4, "compute": 124.3, "both": 109.3, "exposed": 4.2, "idle": 0.5}
    assert swept.source == "kernels"
    assert swept.communication_by_kind_s.keys() == {"ep"}
    other_s = swept.compute_by_category_s["other"]
    assert other_s < 0.005 * swept.span_s, "the table knows DeepSeek's kernels"


def test_device() -> None:
    swept = sweep_file(DATA / "device.json")
    us = {
        name: round(getattr(swept, f"{name}_s") * 1e6, 3)
        for name in ("span", "compute", "communication", "both", "exposed", "idle", "largest_gap", "host_gaps")
    }
    assert us == {
        "span": 271.0,
        "compute": 111.877,
        "communication": 175.0,
        "both": 60.0,
        "exposed": 115.0,
        "idle": 44.123,
        "largest_gap": 30.0,
        "host_gaps": 20.0,  # the memset was launched 20 µs into the 30 that the device stood
    }
    assert (swept.n_kernels, swept.n_gaps, swept.n_host_gaps) == (8, 3, 1)
    assert micro(swept.communication_by_kind_s) == {"dp": 100, "ep": 90, "unknown": 20}
    assert micro(swept.exposed_by_kind_s) == {"dp": 50, "ep": 45, "unknown": 20}
    assert micro(swept.unknown_kinds_s) == {"ncclDevKernel_AllGather_RING_LL": 20}
    assert micro(swept.compute_by_category_s) == {"dense_gemm": 100, "elementwise": 10, "copy_cast": 1.877}


def test_two_gloo_ranks() -> None:
    path = DATA / "two_gloo_ranks.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    lasted = {event["name"]: event["dur"] for event in events}
    swept = sweep_file(path)
    assert swept.source == "host ranges"
    assert micro(swept.exposed_by_kind_s) == {"ep": lasted["wait/ep/dispatch"], "dp": lasted["wait/dp/gradients"]}
    # Of the reduce-scatter, which gloo runs as an all-reduce, all ran before the wait for it; of the all-to-all, what
    # ran before its wait began.
    assert micro(swept.communication_by_kind_s)["dp"] == pytest.approx(
        lasted["gloo:all_reduce"] + lasted["wait/dp/gradients"], abs=0.01
    )
    assert swept.both_s * 1e6 == pytest.approx(lasted["gloo:all_reduce"] + 3578.631 - 3479.856, abs=0.01)
    waits_us = lasted["wait/ep/dispatch"] + lasted["wait/dp/gradients"]
    phases_us = sum(lasted[f"phase/compute_{name}"] for name in ("fwd", "bwd", "opt"))
    assert swept.compute_s * 1e6 == pytest.approx(phases_us - waits_us, abs=0.01)
    assert swept.idle_s * 1e6 > lasted["phase/data_wait"]
    assert swept.unknown_kinds_s == {}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.json", None, "cannot be read"),
        ("torn.json.gz", gzip.compress(b'{"traceEvents": []}')[:-9], "cannot be read"),
        ("no.json.xz", b"{}", "cannot be read"),
        ("no.json", b"tea", "is no Chrome trace"),
        ("other.json", b'{"events": []}', "is no Chrome trace"),
        ("untimed.json", b'[{"ph": "X", "name": "a"}]', "is no Chrome trace"),
        ("trace.txt", b"", r"is no trace: name a \.json"),
        ("empty.json", b"[]", "has neither GPU kernels nor"),
    ],
)
def test_what_is_no_trace_is_refused_in_a_line(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TraceError, match=said) as refused:
        sweep_file(tmp_path / name)
    assert "\n" not in str(refused.value)


def kernel(name: str, device: int = 0) -> dict[str, object]:
    return {"ph": "X", "cat": "kernel", "name": name, "ts": 1, "dur": 2, "args": {"device": device}}


def test_two_devices_are_not_one(tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    path.write_text(json.dumps([kernel("nvjet_a"), kernel("nvjet_a", device=1)]))
    with pytest.raises(TraceError, match="kernels of 2 devices"):
        sweep_file(path)


def test_unknown_communication_stops_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "new.json"
    path.write_text(json.dumps([kernel("nvjet_a"), kernel("ncclDevKernel_Novelty_RING_LL(x)")]))
    with pytest.raises(UnknownCommunication, match="kernel ncclDevKernel_Novelty_RING_LL looks like"):
        sweep_file(path)


def micro(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(s * 1e6, 3) for name, s in seconds.items()}
