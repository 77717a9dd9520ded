"""Counts of one step: what the same words do alike in every run, so that more of it is never noise.

    kernels, kernels/CATEGORY            GPU kernels, copies and memsets that a step launches (train/trace/kernels.py)
    kernels_a_layer                      of these, divided by the model's layers; not of a pipeline's
    host_waits, host_waits/PHASE         how often the host waited for the device in a step (train/trace/host_waits.py);
                                         in all without those of the phase log, which reads a row's numbers
    graphs, late_graphs, graph_breaks    of torch.compile; late: after the first step
    collectives, collectives/KIND/OPERATION
    bytes, bytes/KIND/OPERATION          that a step says between ranks, all ranks together

Kernels and waits are of rank 0's traced step, and a GPU's (trace=true); the others are of every job.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parallel.clock.phase_clock import Phase
from parallel.comm import OPERATIONS
from parallel.comm_kind import CommKind
from train.metrics.counts import COUNTS_FILE, RunCounts
from train.trace.kernels import Category
from train.trace.reduce import COMMUNICATION
from train.trace.sweep import KERNELS

Counts = Mapping[str, float]
"""By name; what was not counted is absent."""
PARTS: Mapping[str, frozenset[str]] = {
    "kernels": frozenset([COMMUNICATION, *(category.value for category in Category)]),
    "host_waits": frozenset(phase.value for phase in Phase),
    "collectives": frozenset(kind.value for kind in CommKind),
    "bytes": frozenset(kind.value for kind in CommKind),
}
"""What is counted in parts, and what the first word of such a part can be."""
BETWEEN_RANKS = ("collectives", "bytes")
"""Of these, the parts are of a kind and an operation."""
WHOLE = (*PARTS, "kernels_a_layer", "graphs", "late_graphs", "graph_breaks")


def read_counts(folder: Path, trace: Mapping[str, Any] | None, n_layers: int | None) -> Counts:
    """Of the run in `folder`; `trace` is the summary beside its deep trace, `n_layers` the layers of rank 0: None if it
    has not all of the model's."""
    counts: dict[str, float] = {}
    if trace and trace.get("source") == KERNELS and "launched_by_category" in trace:
        launched, waits = trace["launched_by_category"], trace["host_waits"]
        counts |= _in_parts("kernels", launched)
        if n_layers is not None:
            counts["kernels_a_layer"] = round(counts["kernels"] / n_layers, 1)
        counts |= _in_parts("host_waits", waits)
        counts["host_waits"] -= waits.get(Phase.log.value, 0)
    if run := RunCounts.read(folder / COUNTS_FILE):
        counts |= {"graphs": run.graphs, "late_graphs": run.late_graphs, "graph_breaks": run.graph_breaks}
        if run.said is not None:
            calls, n_bytes = Counter[str](), Counter[str]()
            for one in run.said:
                calls[f"{one.kind}/{one.operation}"] += one.calls
                n_bytes[f"{one.kind}/{one.operation}"] += one.n_bytes
            counts |= _in_parts("collectives", calls) | _in_parts("bytes", n_bytes)
    return counts


def most(all_counts: Iterable[Counts]) -> Counts:
    """Of several jobs of the same words: the most of each, should they differ after all."""
    merged: dict[str, float] = {}
    for counts in all_counts:
        merged |= {name: max(value, merged.get(name, value)) for name, value in counts.items()}
    return merged


def count_of(counts: Counts, name: str) -> float | None:
    """The count of this name; None if it was not counted: a part that does not occur is 0 where its whole is there."""
    whole, _, part = name.partition("/")
    return counts.get(name, 0 if part and whole in counts else None)


def known(name: str) -> bool:
    """Whether anything is ever counted by this name."""
    whole, *parts = name.split("/")
    if not parts:
        return whole in WHOLE
    depth = 2 if whole in BETWEEN_RANKS else 1
    operations = parts[1:]
    return len(parts) == depth and parts[0] in PARTS.get(whole, ()) and OPERATIONS.issuperset(operations)


def _in_parts(whole: str, parts: Mapping[str, int]) -> dict[str, float]:
    return {whole: sum(parts.values()), **{f"{whole}/{part}": n for part, n in parts.items()}}
