"""What a step has to do, in closed form, beside how long its kernels took and what the machine can do at best.

Figures are of one rank: a step's work over the ranks, and rank 0's kernels of one traced step. Work is the model's:
what recomputation does twice counts once, so its rate is lower.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from conf.schema import JobConfig
from launch.bench.ceilings import Ceilings
from models.flops import count_parameters, flops_by_category, routed_parameters
from parallel.config import Matmul, Reduction
from parallel.mesh import Degrees
from train.config import Moments
from train.metrics.verdict import TracedStep

ADAMW_PASSES, OF_MOMENTS = 7, 4
"""AdamW reads a weight, its gradient and two moments, and writes the weight and the moments back; how many of these are
moments'."""
CEILINGS = {"dense_gemm": "dense_tflops", "expert_gemm": "expert_tflops", "attention": "attention_tflops"}
"""What bounds each category of products; the optimizer is bound by `copy_gbs`."""


@dataclass(frozen=True)
class Line:
    """One category of a step, on one rank."""

    category: str
    work: float
    """1e12 FLOPs; of the optimizer, 1e9 bytes."""
    unit: str
    """Of the work: TFLOP or GB."""
    kernel_s: float | None
    """None without a trace."""
    ceiling: float | None
    """Work a second; None if it was not measured."""

    @property
    def rate(self) -> float | None:
        """Work a second of its kernels; None without any."""
        return self.work / self.kernel_s if self.kernel_s else None

    @property
    def of_ceiling(self) -> float | None:
        """The rate's part of the ceiling."""
        return self.rate / self.ceiling if self.rate and self.ceiling else None


def roofline(job: JobConfig, n_ranks: int, ceilings: Ceilings | None, trace: TracedStep | None) -> list[Line]:
    """The categories whose work has a closed form. What cannot be set beside each other is left out: see `caveats`."""
    pipelined, measured = Degrees.resolve(job.strategy, n_ranks).pp > 1, _measured(job, ceilings)
    seconds: Mapping[str, float] = trace.kernel_s if trace and not pipelined else {}
    tokens = job.train.global_batch_size * job.data.sequence_length / n_ranks
    lines = [
        Line(
            category,
            flops * tokens / 1e12,
            "TFLOP",
            seconds.get(category),
            getattr(ceilings, CEILINGS[category]) if ceilings and measured else None,
        )
        for category, flops in flops_by_category(job.model, job.data.sequence_length).items()
    ]
    element = job.precision.parameters.torch.itemsize
    of_moment = torch.bfloat16.itemsize if job.optim.moments is Moments.bfloat16 else element
    passes = (ADAMW_PASSES - OF_MOMENTS) * element + OF_MOMENTS * of_moment
    moved = optimizer_parameters(job, n_ranks) * passes
    bandwidth = ceilings.copy_gbs if ceilings else None
    return [*lines, Line("optimizer", moved / 1e9, "GB", seconds.get("optimizer"), bandwidth)]


def caveats(job: JobConfig, n_ranks: int, ceilings: Ceilings | None) -> list[str]:
    """What `roofline` leaves out, and why."""
    said = []
    if Degrees.resolve(job.strategy, n_ranks).pp > 1:
        said.append("no rates: the work is the mean of all pipeline stages, the kernels are those of rank 0's alone")
    if ceilings and not _measured(job, ceilings):
        said.append(f"no ceilings of products: they were measured in {ceilings.dtype}, not {_compute(job)}")
    return said


def _measured(job: JobConfig, ceilings: Ceilings | None) -> bool:
    return ceilings is not None and ceilings.dtype == _compute(job)


def _compute(job: JobConfig) -> str:
    compute = str(job.precision.compute.value)
    return compute if job.precision.matmul is Matmul.default else f"{compute} and fp8"


def optimizer_parameters(job: JobConfig, n_ranks: int) -> float:
    """Parameters that one rank's optimizer moves, the mean over ranks; norms and routers count as if tensor-parallel
    ranks divided them as they do matrices."""
    degrees = Degrees.resolve(job.strategy, n_ranks)
    routed = routed_parameters(job.model)
    others = count_parameters(job.model).total - routed
    mirrors = 2 if degrees.paired else 1  # ranks that hold a stage each for itself
    match job.strategy.reduction:
        case Reduction.shard_optimizer | Reduction.shard_gradients:
            return (routed + others) / n_ranks
        case Reduction.shard:
            return (routed + others) * degrees.dp_replicate * mirrors / n_ranks
        case Reduction.none | Reduction.all_reduce:
            stages = degrees.pp // mirrors
            return routed / (stages * degrees.ep * degrees.etp) + others / (stages * degrees.tp)
