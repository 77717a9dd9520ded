"""Where the host waited for the device: each such call of a step is a place at which the device may run out of work.

What counts, by the names that a trace gives calls of the CUDA runtime and driver:

    …StreamSynchronize, …DeviceSynchronize, …EventSynchronize, cuCtxSynchronize     wait by name
    cudaMemcpy, cuMemcpyDtoH … without Async                                        wait until the copy is done
    cudaFree, cuMemFree                                                             wait for all that the device has
    a copy from the device to pageable memory, cudaMemcpyAsync too                  wait until it is there

torch follows a copy that must wait (`.item()`, `.cpu()`, `x[0] = 1` on a GPU) with a cudaStreamSynchronize: that is one
wait, and counted once. An event that is asked whether it has passed (cudaEventQuery) is no wait, nor is one stream's
for another (cudaStreamWaitEvent).
"""

import re
from collections import Counter, defaultdict

from train.trace.chrome import Launch, Nesting, Trace

_WAIT = re.compile(
    r"(cuda|cu)(Stream|Device|Event|Ctx|Thread)Synchronize|(cuda|cu)Memcpy(?!.*(Async|Peer))\w*|cudaFree|cuMemFree"
)
_SUFFIX = re.compile(r"(_v\d+|_ptsz|_ptds)+$")
"""Of variants of one call."""
_TO_PAGEABLE = re.compile(r"Memcpy DtoH \(Device -> Pageable\)")
_EVERY_THREAD = (None, None)
"""Phases are of the step, whichever thread waits in them: backward has its own."""


def host_waits(trace: Trace) -> dict[str, int]:
    """How often the host waited, by the phase in which the call began: those of the step, and `log`, which reads the
    numbers of its row. What came before the step, and what the profiler itself waited for, is none of them."""
    if trace.step is None:
        return {}
    phases = Nesting(each._replace(thread=_EVERY_THREAD) for each in trace.ranges if each.name.startswith("phase/"))
    found: Counter[str] = Counter()
    for call in _waiting(trace):
        phase = phases.innermost(_EVERY_THREAD, call.begin_ns)
        name = phase.name.partition("/")[2] if phase else ""
        if call.begin_ns >= trace.step[0] and (name == "log" or call.begin_ns < trace.step[1]):
            found[name] += 1
    return dict(found)


def _waiting(trace: Trace) -> list[Launch]:
    to_pageable = {kernel.correlation for kernel in trace.kernels if _TO_PAGEABLE.match(kernel.name)}
    by_thread: dict[object, list[tuple[Launch, bool]]] = defaultdict(list)
    for correlation, call in trace.launches.items():
        by_thread[call.thread].append((call, correlation in to_pageable))
    waiting = []
    for calls in by_thread.values():
        calls.sort(key=lambda each: each[0].begin_ns)
        synchronises = [bool(_WAIT.fullmatch(_SUFFIX.sub("", call.name))) for call, _ in calls]
        for (call, copies), waits, next_waits in zip(calls, synchronises, [*synchronises[1:], False], strict=True):
            if waits or (copies and not next_waits):
                waiting.append(call)
    return waiting
