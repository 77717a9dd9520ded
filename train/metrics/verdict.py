"""What bounds a run, from where its steps' time went, and what to try first, in our own words.

A step is computing or waiting. A wait of some size can be taken away, and is named first; only where none is left are
kernels what bounds it: matrix products (compute) or what streams through memory (element-wise kernels, copies, the
optimizer). To tell those two apart, and a device that waits for launches from one that works, takes a deep trace.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from train.metrics.breakdown import COMMUNICATION, WALL

WAIT = 0.1
"""Part of a step from which on a wait is what bounds it, or the largest of waits that are twice that together. Without
it the run would be a ninth faster, more than rounds of one job differ; with less, effort gains more in kernels."""
OPTIMIZER = 0.25
"""Part of compute from which on the optimizer is what bounds it, where no trace says what kernels did. It multiplies no
matrices, and twice the tokens a step would make each an eighth cheaper, which few kernels' improvements do."""
MATRIX_PRODUCTS = ("dense_gemm", "expert_gemm", "attention")
ONCE_A_STEP = ("optimizer", "copy_cast")
"""Of the kernels that wait for memory, those whose work is by weights and not by tokens, most of it."""
STREAMING = ("optimizer", "norm_reduction", "elementwise", "permutation", "copy_cast")
"""Kernels that wait for memory: a few operations a byte, where a GPU of today does hundreds in the time of one."""


class Try(NamedTuple):
    """Something to try, unless it is in effect."""

    text: str
    key: str = ""
    """Of the configuration that `text` sets; empty: it can always be done."""
    in_effect: Callable[[Any], bool] = bool
    """Whether the key's value is what is advised, or more of it."""


MORE_TOKENS = Try("a larger train.global_batch_size")
MORE_MICRO_BATCHES = Try("a smaller train.micro_batch_size: more micro-batches")
TRACE = Try("a deep trace, for which kernels it is: measure.trace_every=20", "measure.trace_every")
ADVICE: dict[str, tuple[Try, ...]] = {
    "input": (
        Try("overlap.data=4", "overlap.data", lambda batches: batches >= 4),
        Try("text tokenised beforehand (switchyard tokenize)"),
    ),
    "communication (dp)": (
        Try("overlap.grad_reduce=true", "overlap.grad_reduce"),
        Try("overlap.bucket_mib=100", "overlap.bucket_mib", lambda mib: mib >= 100),
        MORE_TOKENS,
    ),
    "communication (fsdp)": (Try("overlap=max", "overlap.name", lambda name: name == "max"), MORE_TOKENS),
    "communication (tp)": (
        Try("overlap.async_tp=4", "overlap.async_tp", lambda chunks: chunks > 1),
        Try("a smaller strategy.tp beside strategy.dp_shard, as in strategy=fsdp"),
    ),
    "communication (ep)": (
        Try("overlap.shared_experts=true", "overlap.shared_experts"),
        Try("overlap.forward_backward=true", "overlap.forward_backward"),
        Try("a smaller strategy.ep, or another strategy.dispatcher"),
    ),
    "communication (pp)": (Try("overlap.pipeline_p2p=true", "overlap.pipeline_p2p"), MORE_MICRO_BATCHES),
    "communication (control)": (MORE_TOKENS,),
    "straggler": (Try("a look at time/slow_rank, which the others wait for"),),
    "bubble": (
        Try(
            "strategy.schedule=dualpipev",
            "strategy.schedule",
            lambda name: name in ("zbv", "dualpipev", "dualpipe", "interleaved_zero_bubble"),
        ),
        MORE_MICRO_BATCHES,
    ),
    "logging": (
        Try("train.log_every=50", "train.log_every", lambda steps: steps >= 50),
        Try("a larger train.log_every"),
    ),
    "host": (Try("a larger train.micro_batch_size: more work a launch"),),
    "unnamed time": (TRACE, Try("a look at the trace (switchyard trace)")),
    "memory": (MORE_TOKENS._replace(text=f"{MORE_TOKENS.text}: the optimizer and its copies run once a step"),),
    "memory (activations)": (
        Try("strategy.recompute=none", "strategy.recompute", lambda name: name == "none"),
        Try("a wider model.dim: element-wise work grows slower than matrix products"),
    ),
    "compute": (
        Try("strategy.recompute=none", "strategy.recompute", lambda name: name == "none"),
        TRACE,
        Try("more ranks: matrix products are what this run does"),
    ),
}
"""What to try first, and what then."""


@dataclass(frozen=True)
class Verdict:
    """What bounds a run."""

    bound: str
    """A key of ADVICE."""
    share: float
    """Its part of a step; of communication, all kinds', of which the named one is the largest."""

    def sentence(self, settings: Mapping[str, Any]) -> str:
        """To be read in a table. `settings`: the run's configuration, plain, by group and key."""
        untried = (one for one in ADVICE[self.bound] if not (one.key and _in_effect(one, settings)))
        return f"{self.bound}, {self.share:.0%} of a step; try {next(untried).text}"


def _in_effect(advice: Try, settings: Mapping[str, Any]) -> bool:
    group, _, key = advice.key.partition(".")
    value = settings.get(group, {}).get(key)
    return value is not None and advice.in_effect(value)


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
    kinds = {f"communication ({kind})": shares.get(f"exposed_comm/{kind}", 0.0) for kind in COMMUNICATION}
    waits = {
        "input": shares.get("data_wait", 0.0),
        max(kinds, key=kinds.__getitem__): sum(kinds.values()),
        "straggler": shares.get("sync_wait", 0.0),
        "bubble": shares.get("bubble", 0.0),
        "logging": shares.get("log", 0.0),
        "unnamed time": abs(shares.get("other", 0.0)),  # a negative rest was counted twice
    }
    if trace:
        # Recording makes the host slower: what the device idled then is no more than what steps without it leave. And
        # no launch comes either where the host itself waits for what has a name of its own.
        gaps = min(trace.host_gaps_s / trace.span_s, max(0.0, 1 - (trace.span_s - trace.host_gaps_s) / wall))
        waits["host"] = gaps - waits["input"] - waits["logging"]
    worst = max(waits, key=waits.__getitem__)
    if waits[worst] >= WAIT or sum(waits.values()) >= 2 * WAIT:
        return Verdict(worst, waits[worst])
    return _kernels(shares, trace)


def _kernels(shares: Mapping[str, float], trace: TracedStep | None) -> Verdict:
    """Of a step without a wait of any size."""
    if trace:
        products, streaming = (trace.seconds(names) / trace.span_s for names in (MATRIX_PRODUCTS, STREAMING))
        if streaming <= products:
            return Verdict("compute", products)
        once_a_step = trace.seconds(ONCE_A_STEP) / trace.span_s
        return Verdict("memory" if once_a_step >= streaming / 2 else "memory (activations)", streaming)
    optimizer = shares.get("compute_opt", 0.0)
    compute = optimizer + shares.get("compute_fwd", 0.0) + shares.get("compute_bwd", 0.0)
    return Verdict("memory", optimizer) if optimizer >= OPTIMIZER * compute else Verdict("compute", compute)
