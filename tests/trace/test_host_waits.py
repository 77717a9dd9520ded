"""Where the host waited for the device, and what a step launched: by hand, and on record from an H100."""

import json
from pathlib import Path

import pytest

from train.trace.chrome import read_trace
from train.trace.host_waits import host_waits
from train.trace.reduce import sweep_file

DATA = Path(__file__).parent / "data"
MAIN, BACKWARD = 1, 2
PHASES = [
    ("phase/log", 0, 10),
    ("phase/data_wait", 10, 20),
    ("phase/compute_fwd", 20, 40),
    ("phase/compute_bwd", 40, 70),
    ("phase/compute_opt", 70, 90),
    ("phase/log", 90, 120),
    ("phase/profile", 120, 140),
]
"""Name, begin and end, µs."""


def trace_of(tmp_path: Path, *calls: tuple[str, int, int], copies: dict[int, str] | None = None) -> Path:
    """A step with these `calls` of the runtime (name, begin, thread); `copies` and kernels by which call began them."""
    events = [event("user_annotation", name, MAIN, begin, end - begin) for name, begin, end in PHASES]
    for number, (name, begin, thread) in enumerate(calls):
        events.append(event("cuda_runtime", name, thread, begin, 1, correlation=number))
    for number, name in (copies or {}).items():
        category = "gpu_memcpy" if name.startswith("Memcpy") else "kernel"
        events.append(event(category, name, 0, 60, 1, correlation=number, device=0, stream=7))
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(events))
    return path


def event(category: str, name: str, thread: int, begin: int, lasts: int, **more: object) -> dict[str, object]:
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": thread, "ts": begin, "dur": lasts, "args": more}


@pytest.mark.parametrize(
    "name",
    [
        "cudaStreamSynchronize",
        "cudaDeviceSynchronize",
        "cudaEventSynchronize",
        "cuStreamSynchronize",
        "cuCtxSynchronize",
        "cudaStreamSynchronize_ptsz",
        "cudaMemcpy",
        "cudaMemcpyToSymbol",
        "cuMemcpyDtoH_v2",
        "cudaFree",
        "cuMemFree_v2",
    ],
)
def test_what_waits_by_its_name(name: str, tmp_path: Path) -> None:
    assert host_waits(read_trace(trace_of(tmp_path, (name, 45, MAIN)))) == {"compute_bwd": 1}


@pytest.mark.parametrize(
    "name",
    ["cudaEventQuery", "cudaStreamWaitEvent", "cudaMemcpyAsync", "cuMemcpyDtoHAsync_v2", "cudaLaunchKernel"],
)
def test_what_does_not(name: str, tmp_path: Path) -> None:
    assert host_waits(read_trace(trace_of(tmp_path, (name, 45, MAIN)))) == {}


def test_a_wait_is_of_the_phase_that_the_step_is_in_whichever_thread_waits(tmp_path: Path) -> None:
    """Neither what came before the step nor the profiler's own synchronisation is one."""
    wait = "cudaStreamSynchronize"
    begins = [(5, MAIN), (25, MAIN), (50, BACKWARD), (55, BACKWARD), (75, MAIN), (100, MAIN), (130, MAIN), (150, MAIN)]
    trace = read_trace(trace_of(tmp_path, *((wait, begin, thread) for begin, thread in begins)))
    assert host_waits(trace) == {"compute_fwd": 1, "compute_bwd": 2, "compute_opt": 1, "log": 1}


def test_a_copy_that_waits_and_the_synchronisation_after_it_are_one(tmp_path: Path) -> None:
    to_host, to_pinned = "Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)"
    calls = [
        ("cudaMemcpyAsync", 21, MAIN),  # 0: to pageable memory, and a synchronisation: .cpu()
        ("cudaStreamSynchronize", 22, MAIN),
        ("cudaMemcpyAsync", 23, MAIN),  # 2: the same without one: it waits by itself
        ("cudaLaunchKernel", 24, MAIN),
        ("cudaStreamSynchronize", 25, MAIN),  # whatever this is for
        ("cudaMemcpyAsync", 75, MAIN),  # 5: to pinned memory
        ("cudaMemcpyAsync", 80, MAIN),  # 6: to pageable memory, beside another thread's synchronisation
        ("cudaStreamSynchronize", 81, BACKWARD),
    ]
    copies = {0: to_host, 2: to_host, 5: to_pinned, 6: to_host}
    assert host_waits(read_trace(trace_of(tmp_path, *calls, copies=copies))) == {"compute_fwd": 3, "compute_opt": 2}


def test_kernels_are_those_that_the_step_launched(tmp_path: Path) -> None:
    """Not a row's; and one whose launch nobody saw was a graph's."""
    calls = [("cudaLaunchKernel", begin, MAIN) for begin in (5, 15, 45, 85, 95, 125)]
    kernels = dict.fromkeys(range(6), "nvjet_a") | {2: "Memcpy DtoD (Device -> Device)", 99: "flash_fwd"}
    swept = sweep_file(trace_of(tmp_path, *calls, copies=kernels))
    assert swept.n_kernels == 7
    assert swept.launched_by_category == {"dense_gemm": 2, "copy_cast": 1, "attention": 1}


def test_a_step_of_an_h100() -> None:
    """strategy=ep, eager, 5 layers of moe_5b: each of its 4 dispatches reads how many rows go where. The record kept
    launches alone, so what is seen are copies."""
    swept = sweep_file(DATA / "h100_ep.json.xz")
    assert swept.host_waits == {"compute_fwd": 4, "log": 5}
    assert swept.launched_by_category["communication"] == 40
    assert sum(swept.launched_by_category.values()) == 2116
    assert swept.n_kernels == 2128


def test_a_trace_without_phases_is_all_one_step() -> None:
    swept = sweep_file(DATA / "device.json")
    assert sum(swept.launched_by_category.values()) == swept.n_kernels
    assert swept.host_waits == {}
