"""A Chrome trace, as torch.profiler exports it, read into kernels, the calls that launched them, and host ranges."""

import gzip
import json
import lzma
import re
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from models.config import ConfigError

_OPENERS: Mapping[str, Any] = {".json": open, ".gz": gzip.open, ".xz": lzma.open}
_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}
_LAUNCHES = {"cuda_runtime", "cuda_driver"}
_RANGES = {"user_annotation", "cpu_op"}
ONE_PASS = "one_pass_adamw"
"""A range of train/one_pass_adamw.py: a trace has no operator for kernels of ours."""
UPDATE = re.compile(rf"aten::(_foreach_)?addcdiv_$|aten::_fused_adamw_$|{ONE_PASS}$")
"""The operators by which AdamW moves weights, one a call of it."""
_WORK = re.compile(
    r"aten::(mm|bmm|addmm|addmv|mv|baddbmm|_grouped_mm|_addmm_activation)$"
    r"|aten::_scaled_dot_product_\w+|aten::_flash_attention_\w+|aten::_efficient_attention_\w+"
    rf"|switchyard::grouped_\w+|{UPDATE.pattern}"
)
"""Operators worth hiding a transfer behind: matrix products, attention and AdamW's update."""
_WANTED_RANGES = ("comm/", "wait/", "over/", "phase/", "c10d::", "gloo:", "FSDP::")


class TraceError(ConfigError):
    """A file is no trace, or holds nothing that can be swept."""


Thread = tuple[Any, Any]
"""Process and thread."""


class Kernel(NamedTuple):
    """What ran on the device, copies and memsets too."""

    name: str
    device: Any
    begin_ns: int
    end_ns: int
    correlation: int | None
    """The number that its launch bears too."""
    stream: Any


class Launch(NamedTuple):
    """A call of the CUDA runtime or driver."""

    thread: Thread
    begin_ns: int
    end_ns: int
    name: str


class Range(NamedTuple):
    """What a thread of the host was in: a `record_function` range, or an operator of torch.distributed."""

    name: str
    thread: Thread
    begin_ns: int
    end_ns: int


@dataclass
class Trace:
    """What a sweep needs of a trace; everything else in the file is dropped while it is read."""

    kernels: list[Kernel] = field(default_factory=list)
    launches: dict[int, Launch] = field(default_factory=dict)
    """By correlation."""
    ranges: list[Range] = field(default_factory=list)
    work: list[Range] = field(default_factory=list)
    """Operators of the host that are matrix products, attention or AdamW's update; on a GPU, where it launched them."""

    @property
    def step(self) -> tuple[int, int] | None:
        """Where on the host the traced step begins and ends, ns: from its wait for data to the end of its update. What
        is read for its row, and what the profiler does, is beside it. None where no phase of it is shown."""
        phases = [each for each in self.ranges if each.name.startswith(("phase/data_wait", "phase/compute_"))]
        if not phases:
            return None
        return min(phase.begin_ns for phase in phases), max(phase.end_ns for phase in phases)


class Nesting:
    """Ranges of every thread, to be asked which of them is the innermost at a moment. A thread's ranges nest."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._ranges: dict[Thread, list[Range]] = defaultdict(list)
        for each in sorted(ranges, key=lambda r: (r.begin_ns, -r.end_ns)):
            self._ranges[each.thread].append(each)
        self._begins = {thread: [r.begin_ns for r in of_it] for thread, of_it in self._ranges.items()}
        self._parents = {thread: _parents(of_it) for thread, of_it in self._ranges.items()}

    def innermost(self, thread: Thread, moment_ns: int) -> Range | None:
        """The range of `thread` that began last of those that hold `moment_ns`; None if none does."""
        if thread not in self._ranges:
            return None
        index: int | None = bisect_right(self._begins[thread], moment_ns) - 1
        while index is not None and index >= 0:
            if self._ranges[thread][index].end_ns >= moment_ns:
                return self._ranges[thread][index]
            index = self._parents[thread][index]
        return None


def read_trace(path: Path) -> Trace:
    """Read a .json, .json.gz or .json.xz file.

    Raises:
        TraceError: if there is no such file, or it is no Chrome trace.
    """
    if path.suffix not in _OPENERS:
        raise TraceError(f"{path} is no trace: name a .json, .json.gz or .json.xz file")
    try:
        file: IO[str]
        with _OPENERS[path.suffix](path, "rt") as file:
            loaded = json.load(file)
        events = loaded["traceEvents"] if isinstance(loaded, dict) else loaded
        return _sort(event for event in events if event.get("ph") == "X")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise TraceError(f"{path} cannot be read ({error}): name a whole trace file") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise TraceError(f"{path} is no Chrome trace ({error!r}): name a file that torch.profiler exported") from error


def _sort(events: Iterable[dict[str, Any]]) -> Trace:
    trace = Trace()
    for event in events:
        category = event.get("cat")
        begin = _ns(event["ts"])
        end = begin + _ns(event.get("dur", 0))
        thread, more = (event.get("pid"), event.get("tid")), event.get("args", {})
        if category in _KERNELS:
            device = more.get("device", event.get("pid"))
            trace.kernels.append(Kernel(event["name"], device, begin, end, more.get("correlation"), more.get("stream")))
        elif category in _LAUNCHES and "correlation" in more:
            trace.launches[more["correlation"]] = Launch(thread, begin, end, event["name"])
        elif category in _RANGES and event["name"].startswith(_WANTED_RANGES):
            trace.ranges.append(Range(event["name"], thread, begin, end))
        elif event["name"] == ONE_PASS or (category == "cpu_op" and _WORK.match(event["name"])):
            trace.work.append(Range(event["name"], thread, begin, end))
    return trace


def _ns(microseconds: float) -> int:
    """Whole ones: sums of floats near 10¹⁵ would not be exact."""
    return round(microseconds * 1000)


def _parents(ranges: list[Range]) -> list[int | None]:
    """Of each, in order of their begins, the innermost that encloses it."""
    parents: list[int | None] = []
    open_ranges: list[int] = []
    for index, each in enumerate(ranges):
        while open_ranges and ranges[open_ranges[-1]].end_ns < each.end_ns:
            open_ranges.pop()
        parents.append(open_ranges[-1] if open_ranges else None)
        open_ranges.append(index)
    return parents
