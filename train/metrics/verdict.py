"""What bounds a run, from where its steps' time went, and what to try first, in our own words.

A step is computing or waiting. A wait of some size can be taken away, and is named first; only where none is left are
kernels what bounds it: matrix products (compute) or what streams through memory (element-wise kernels, copies, the
optimizer). To tell those two apart, and a device that waits for launches from one that works, takes a deep trace.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from train.metrics.breakdown import COMMUNICATION, WALL

WAIT = 0.1
"""Part of a step from which on a wait is what bounds it. Without it the run would be a ninth faster, more than rounds
of one job differ; with less than that, the same effort gains more in kernels."""
OPTIMIZER = 0.25
"""Part of compute from which on the optimizer is what bounds it, where no trace says what kernels did. It multiplies no
matrices, and twice the tokens a step would make each an eighth cheaper, which few kernels' improvements do."""
MATRIX_PRODUCTS = ("dense_gemm", "expert_gemm", "attention")
STREAMING = ("optimizer", "norm_reduction", "elementwise", "permutation", "copy_cast")
"""Kernels that wait for memory: a few operations a byte, where a GPU of today does hundreds in the time of one."""

MORE_TOKENS = "a larger train.global_batch_size"
ADVICE = {
    "input": "overlap.data=4, or text tokenised beforehand (switchyard tokenize)",
    "communication (dp)": f"overlap.grad_reduce=true, overlap.bucket_mib=100, or {MORE_TOKENS}",
    "communication (fsdp)": f"overlap=max, or {MORE_TOKENS}",
    "communication (tp)": "a smaller strategy.tp beside strategy.dp_shard, as in strategy=fsdp",
    "communication (ep)": "strategy.placement=round_robin, or a smaller strategy.ep",
    "communication (pp)": "a smaller train.micro_batch_size: more transfers under way behind compute",
    "communication (control)": "train.log_every=50",
    "straggler": "the rank that others wait for: measure.trace_slow=true; with experts strategy.placement=round_robin",
    "bubble": "strategy.schedule=dualpipev, or a smaller train.micro_batch_size (more micro-batches)",
    "logging": "train.log_every=50",
    "host": "a larger train.micro_batch_size: more work a launch",
    "unnamed time": "a deep trace of a step: measure.trace_every=20",
    "memory": f"{MORE_TOKENS}: the optimizer and its copies run once a step",
    "compute": "measure.trace_every=20, for which kernels it is; precision=bf16 and no strategy.recompute, if not set",
}


@dataclass(frozen=True)
class Verdict:
    """What bounds a run."""

    bound: str
    """A key of ADVICE."""
    share: float
    """Its part of a step."""

    @property
    def sentence(self) -> str:
        """To be read in a table."""
        return f"{self.bound}, {self.share:.0%} of a step; try {ADVICE[self.bound]}"


@dataclass(frozen=True)
class TracedStep:
    """What a deep trace says of one step of one rank, on a GPU."""

    span_s: float
    """Seconds from its first kernel to its last one's end."""
    idle_s: float
    """Of these, seconds in which the device did nothing at all."""
    host_gaps_s: float
    """Of those, seconds in which it waited for a launch."""
    n_host_gaps: int
    """Times that it did."""
    kernel_s: dict[str, float]
    """Seconds of kernels by what they do (train/trace/kernels.py), and of communication."""

    @classmethod
    def read(cls, summary: Mapping[str, Any] | None) -> "Self | None":
        """Of the summary beside a trace; None without one, or of a step without kernels: a CPU's has phases."""
        if not summary or summary.get("source") != "kernels":
            return None
        kernels = {**summary["compute_by_category_s"], "communication": summary["communication_s"]}
        gaps_s, n_gaps = summary["host_gaps_s"], summary["n_host_gaps"]
        return cls(summary["span_s"], summary["idle_s"], gaps_s, n_gaps, kernels)

    def seconds(self, categories: tuple[str, ...]) -> float:
        """Of kernels of these `categories` together."""
        return sum(self.kernel_s.get(category, 0.0) for category in categories)


def judge(breakdown: Mapping[str, float], trace: TracedStep | None = None) -> Verdict | None:
    """What bounds a run whose steps' mean is `breakdown` (of `mean_breakdown`); None for an empty one."""
    wall = breakdown.get(WALL, 0.0)
    if wall <= 0:
        return None
    shares = {bucket: seconds / wall for bucket, seconds in breakdown.items()}
    waits = {
        "input": shares.get("data_wait", 0.0),
        **{f"communication ({kind})": shares.get(f"exposed_comm/{kind}", 0.0) for kind in COMMUNICATION},
        "straggler": shares.get("sync_wait", 0.0),
        "bubble": shares.get("bubble", 0.0),
        "logging": shares.get("log", 0.0),
        "unnamed time": abs(shares.get("other", 0.0)),
    }
    if trace:  # no launch comes either where the host itself waits for what has a name of its own
        waits["host"] = trace.host_gaps_s / trace.span_s - waits["input"] - waits["logging"]
    worst = max(waits, key=waits.__getitem__)
    if waits[worst] >= WAIT:
        return Verdict(worst, waits[worst])
    return _kernels(shares, trace)


def _kernels(shares: Mapping[str, float], trace: TracedStep | None) -> Verdict:
    """Of a step without a wait of any size."""
    if trace:
        products, streaming = (trace.seconds(names) / trace.span_s for names in (MATRIX_PRODUCTS, STREAMING))
        return Verdict("memory", streaming) if streaming > products else Verdict("compute", products)
    optimizer = shares.get("compute_opt", 0.0)
    compute = optimizer + shares.get("compute_fwd", 0.0) + shares.get("compute_bwd", 0.0)
    return Verdict("memory", optimizer) if optimizer >= OPTIMIZER * compute else Verdict("compute", compute)
