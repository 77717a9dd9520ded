"""Traces to sweeps: DeepSeek-V3's published profile, one of a device made by hand, one of two gloo ranks."""

import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from train.trace.chrome import Kernel, Launch, Nesting, Range, Trace, TraceError
from train.trace.kernels import UnknownCommunication
from train.trace.reduce import sweep_file, sweep_host_ranges, sweep_kernels

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


@pytest.mark.parametrize(
    ("strategy", "waited_s"),
    [("ep", {"ep": 0.012415, "dp": 0.001080, "control": 0.000012}), ("fsdp", {"fsdp": 0.008505, "control": 0.000024})],
)
def test_what_the_compute_stream_waited_for_is_what_the_clock_bracketed(
    strategy: str, waited_s: dict[str, float]
) -> None:
    """One step each on 2 × H100, by measure.trace_every; the brackets are of the same step and rank. Both are older
    than the name over/…: waits for what was over are wait/… in them."""
    path = DATA / f"h100_{strategy}.json.xz"
    swept = sweep_file(path)
    with lzma.open(path) as file:
        brackets: dict[str, float] = json.load(file)["waited_s"]
    assert swept.stream_waits_s == pytest.approx(waited_s, abs=1e-6)
    # 12.24 of ep, 1.03 of dp; 8.48 of fsdp, where two waits began 0.34 and 0.36 ms before the next kernel was launched.
    assert swept.stream_waits_s == pytest.approx(brackets, rel=0.02, abs=6e-5)
    assert swept.unknown_kinds_s == {}
    assert swept.compute_by_category_s["other"] < 0.01 * swept.compute_s


@pytest.mark.parametrize(("told", "waited_us"), [("wait/dp/all_reduce#1", 70), ("over/dp/all_reduce#1", 5)])
def test_a_range_of_what_was_over_tells_no_stream_to_wait(told: str, waited_us: float) -> None:
    """The device stands from 100 to 200 µs, beside a transfer to 190; its next kernel is launched at 185."""
    us = 1000
    kernels = [
        Kernel("gemm", 0, 0, 100 * us, 1, 7),
        Kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 0, 60 * us, 190 * us, 2, 8),
        Kernel("gemm", 0, 200 * us, 300 * us, 3, 7),
    ]
    launched = {1: 0, 2: 10, 3: 183}
    launches = {n: Launch((1, 1), at * us, (at + 2) * us, "cudaLaunchKernel") for n, at in launched.items()}
    ranges = [Range("comm/dp/all_reduce#1", (1, 1), 5 * us, 15 * us), Range(told, (1, 1), 120 * us, 122 * us)]
    swept = sweep_kernels(Trace(kernels, launches, ranges))
    assert micro(swept.stream_waits_s) == {"dp": waited_us}


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
    ("moment", "innermost"),
    [(-1, None), (5, "a"), (15, "a/1"), (25, "a"), (45, "a/2/1"), (55, "a/2"), (99, "a"), (105, None), (125, "b")],
)
def test_the_innermost_range_at_a_moment(moment: int, innermost: str | None) -> None:
    spans = {"a": (0, 100), "a/1": (10, 20), "a/2": (30, 60), "a/2/1": (40, 50), "b": (120, 130)}
    ranges = [Range(name, (1, 1), *span) for name, span in spans.items()]
    nesting = Nesting([*ranges, Range("elsewhere", (1, 2), -50, 200)])
    found = nesting.innermost((1, 1), moment)
    assert (found.name if found else None) == innermost
    assert nesting.innermost((1, 3), moment) is None


def test_gloo_takes_calls_of_an_operation_in_order() -> None:
    """Two all-reduces under way at once, of two kinds; and one that torch.distributed was not called for."""
    host, gloo = (1, 1), (1, 2)
    issued = [
        Range("comm/dp/all_reduce", host, 0, 10),
        Range("c10d::allreduce_", host, 1, 2),
        Range("comm/ep/all_to_all", host, 11, 13),
        Range("c10d::alltoall_base_", host, 12, 13),
        Range("comm/tp/all_reduce", host, 15, 20),
        Range("c10d::allreduce_", host, 16, 17),
    ]
    ran = [("all_reduce", 30, 40), ("all_to_all", 35, 38), ("all_reduce", 40, 60), ("all_reduce", 60, 61)]
    trace = Trace(
        ranges=[*issued, Range("phase/compute_bwd", host, 0, 100), Range("wait/tp/activations", host, 50, 70)]
    )
    trace.ranges += [Range(f"gloo:{operation}", gloo, begin, end) for operation, begin, end in ran]
    swept = sweep_host_ranges(trace)
    assert {kind: round(s * 1e9) for kind, s in swept.communication_by_kind_s.items()} == {"tp": 30, "dp": 10, "ep": 3}
    assert {name: round(s * 1e9) for name, s in swept.unknown_kinds_s.items()} == {"gloo:all_reduce": 1}
    assert (round(swept.both_s * 1e9), round(swept.exposed_s * 1e9)) == (20, 20)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.json", None, "cannot be read"),
        ("torn.json.gz", gzip.compress(b'{"traceEvents": []}', mtime=0)[:-9], "cannot be read"),
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
