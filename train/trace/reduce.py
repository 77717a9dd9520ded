"""A trace to one `Sweep`: of the device's kernels, or of host ranges where the trace has no kernels.

Who opens the ranges (`torch.profiler.record_function`):

    comm/<kind>/<operation>    the Communicator, on the launching thread, around issuing a collective; FSDP2's are fsdp
    wait/<kind>/<place>        the clock, around each wait; both end in #<number> where the Communicator began it
    over/<kind>/<place>        the same, where nothing is waited for: what it is for was done
    phase/<name>               the clock: data_wait, compute_fwd, compute_bwd, compute_opt, log
"""

import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from parallel.comm_kind import CommKind
from train.trace.chrome import Kernel, Nesting, Range, Trace, TraceError, read_trace
from train.trace.host_waits import host_waits
from train.trace.intervals import Interval, inside, length_ns, merge, outside
from train.trace.kernels import Category, Communication, classify
from train.trace.stream_waits import stream_waits
from train.trace.sweep import HOST_RANGES, KERNELS, NS_PER_S, Sweep, sweep

UNKNOWN = "unknown"
"""The kind of communication that no range of ours launched, and whose name does not say what it is for."""
COMMUNICATION = "communication"
"""Beside the categories of compute, where kernels are counted."""

# gloo's names for what torch.distributed calls; a reduce-scatter may be an all-reduce underneath.
_GLOO = {
    "all_reduce": ("allreduce", "reduce_scatter"),
    "reduce_scatter": ("reduce_scatter",),
    "all_gather": ("allgather",),
    "all_to_all": ("alltoall",),
    "broadcast": ("broadcast",),
    "reduce": ("reduce_",),
    "gather": ("gather_",),
    "scatter": ("scatter_",),
    "send": ("send",),
    "recv": ("recv",),
    "barrier": ("barrier",),
}


def sweep_file(path: Path) -> Sweep:
    """What the trace at `path` amounts to.

    Raises:
        TraceError: if it is no trace, or has neither kernels of one device nor ranges of ours.
        UnknownCommunication: for a kernel that looks like communication and is not in the table.
    """
    trace = read_trace(path)
    devices = {kernel.device for kernel in trace.kernels}
    if len(devices) > 1:
        raise TraceError(f"{path} has kernels of {len(devices)} devices: trace one process per device")
    if devices:
        return sweep_kernels(trace)
    if not any(each.name.startswith(("phase/", "wait/")) for each in trace.ranges):
        raise TraceError(f"{path} has neither GPU kernels nor phase/… and wait/… ranges: trace a step of Switchyard's")
    return sweep_host_ranges(trace)


def sweep_kernels(trace: Trace) -> Sweep:
    """Of what ran on the device: every kernel, copy and memset is compute or communication, whatever its stream.

    Communication is of the kind of the innermost `comm/…` range that its launch lies in, on the launching thread;
    without one (a CUDA graph), of the kind that its name says, or `unknown`.
    """
    issuing = Nesting(each for each in trace.ranges if each.name.startswith("comm/"))
    fsdp = Nesting(each for each in trace.ranges if each.name.startswith("FSDP::"))
    table: dict[str, Category | Communication] = {}
    compute: list[Interval] = []
    communication: list[Interval] = []
    unknown: dict[str, int] = defaultdict(int)
    launched: Counter[str] = Counter()
    step = trace.step
    by_stream: dict[Any, list[Interval]] = defaultdict(list)
    """Compute; beside the stream that has most of it, by what it is for: FSDP2's copies, or nobody knows."""
    for kernel in trace.kernels:
        if kernel.name not in table:
            table[kernel.name] = classify(kernel.name)
        what = table[kernel.name]
        launch = None if kernel.correlation is None else trace.launches.get(kernel.correlation)
        launched_ns = launch.end_ns if launch else None
        if step is None or launch is None or step[0] <= launch.begin_ns < step[1]:
            launched[what.value if isinstance(what, Category) else COMMUNICATION] += 1
        if isinstance(what, Category):
            compute.append(Interval(kernel.begin_ns, kernel.end_ns, what.value, launched_ns))
            copies = launch is not None and fsdp.innermost(launch.thread, launch.begin_ns) is not None
            label = CommKind.fsdp.value if copies else UNKNOWN
            by_stream[kernel.stream].append(Interval(kernel.begin_ns, kernel.end_ns, label, launched_ns))
            continue
        within = issuing.innermost(launch.thread, launch.begin_ns) if launch else None
        kind = _second_word(within) if within else what.kind.value if what.kind else UNKNOWN
        if kind == UNKNOWN:
            unknown[_short(kernel)] += kernel.end_ns - kernel.begin_ns
        communication.append(Interval(kernel.begin_ns, kernel.end_ns, kind, launched_ns))
    streams = sorted(by_stream.values(), key=lambda of_it: length_ns(merge(of_it)))
    beside = [interval for stream in streams[:-1] for interval in stream]
    swept = sweep(
        KERNELS,
        compute,
        communication,
        stream_waits=stream_waits(streams[-1], [*communication, *beside], _told(trace)) if streams else None,
        n_kernels=len(trace.kernels),
        unknown_kinds_s={name: ns / NS_PER_S for name, ns in unknown.items()},
    )
    return replace(swept, launched_by_category=dict(launched.most_common()), host_waits=host_waits(trace))


def _told(trace: Trace) -> dict[str, list[int]]:
    """When the host told the compute stream to wait, by kind, in order, ns."""
    told: dict[str, list[int]] = defaultdict(list)
    for each in sorted(trace.ranges, key=lambda r: r.begin_ns):
        if each.name.startswith("wait/"):
            told[_second_word(each)].append(each.begin_ns)
    return told


def sweep_host_ranges(trace: Trace) -> Sweep:
    """Of a step on the host: compute is the compute phases less the waits, exposed are the waits, by kind.

    gloo's operators on their own threads are communication while compute runs: that is what was hidden. What they do
    outside (while data is awaited, say) delayed nobody, and is left out. They have the kind of the `comm/…` range in
    which torch.distributed was called: the first call of that operation that is not taken yet, since gloo keeps order.
    """
    waits = [_interval(each, _second_word(each)) for each in trace.ranges if each.name.startswith("wait/")]
    phases = [_interval(each, _second_word(each)) for each in trace.ranges if each.name.startswith("phase/")]
    compute = outside([phase for phase in phases if phase.label.startswith("compute_")], merge(waits))
    in_flight, unknown = _gloo_by_kind(trace)
    hidden = inside(in_flight, merge(compute))
    return sweep(HOST_RANGES, compute, [*waits, *hidden], neither=phases, unknown_kinds_s=unknown)


def _gloo_by_kind(trace: Trace) -> tuple[list[Interval], dict[str, float]]:
    """gloo's operators, and the seconds of those of kind `unknown` by name."""
    issuing = Nesting(each for each in trace.ranges if each.name.startswith("comm/"))
    calls = sorted((r for r in trace.ranges if r.name.startswith("c10d::")), key=lambda r: r.begin_ns)
    running = sorted((r for r in trace.ranges if r.name.startswith("gloo:")), key=lambda r: r.begin_ns)
    intervals: list[Interval] = []
    unknown: dict[str, float] = defaultdict(float)
    for each in running:
        names = _GLOO.get(each.name.removeprefix("gloo:"), ())
        call = next((c for c in calls if c.begin_ns <= each.begin_ns and any(name in c.name for name in names)), None)
        within = None
        if call:
            calls.remove(call)
            within = issuing.innermost(call.thread, call.begin_ns)
        kind = _second_word(within) if within else UNKNOWN
        if kind == UNKNOWN:
            unknown[each.name] += (each.end_ns - each.begin_ns) / NS_PER_S
        intervals.append(_interval(each, kind))
    return intervals, dict(unknown)


def _interval(each: Range, label: str) -> Interval:
    return Interval(each.begin_ns, each.end_ns, label)


def _second_word(each: Range) -> str:
    """Of comm/dp/all_reduce: dp."""
    return each.name.split("/")[1]


def _short(kernel: Kernel) -> str:
    """Without template arguments and parameters."""
    return re.split(r"[<(]", kernel.name.removeprefix("void "), maxsplit=1)[0]
