"""The job that a comparison runs: the configured one, scaled down, in the dtype that tells right from wrong."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conf.compose import compose
from conf.overrides import typed_value
from conf.schema import JobConfig, validate
from launch.verify.scale_down import STEPS, scale_down
from launch.verify.trial import Trial
from models.config import ConfigError, ExpertBackend
from parallel.config import Dtype, EngineName, PrecisionConfig, StrategyConfig
from parallel.expert_parallel.build import RowRoom
from parallel.mesh import DENSE, Degrees
from train.batch import BatchMaker
from train.data.config import Boundaries
from train.start.compilers import OURS
from train.start.device_check import check_device

MOST_REST = 9
FP64 = PrecisionConfig("fp64", Dtype.float64, Dtype.float64, Dtype.float64)
FP32 = PrecisionConfig("fp32", Dtype.float32, Dtype.float32, Dtype.float32)
"""Of engines of other libraries, which lack float64."""
CLIP_NORM, EPS = 0.1, 1e-4
"""Below every step's norm, so that clipping is compared, and of the size of a clipped gradient's elements: AdamW with a
small eps does not see by what factor a gradient is wrong, and makes whole steps of one that is rounding alone."""
SEPARATOR = 3
"""The id that ends documents, where the job has any."""


@dataclass(frozen=True)
class Job:
    """One strategy's job, as it was typed and as it is run."""

    name: str
    n_ranks: int
    scaled: JobConfig
    degrees: Degrees
    not_compared: tuple[str, ...]
    """Words of the job's that its dtype has nothing of."""

    @classmethod
    def compose(cls, strategy: str, words: Sequence[str], extra_dir: Path | None, nproc: int | None) -> "Job":
        """`words` with `strategy`, on `nproc` ranks, or on as few as it takes to have two of everything.

        Raises:
            ConfigError: for words that no job of so many ranks would take.
        """
        job = compose([*words, f"strategy={strategy}"], extra_dir).config
        n_ranks = nproc or _least_ranks(job.strategy)
        validate(job, n_ranks)
        for knob in ("compile", "cuda_graph"):
            if getattr(job.strategy, knob):
                raise ConfigError(
                    f"strategy.{knob}=true: verify looks at each layer's choices while it computes, and cannot look "
                    f"into a graph; leave it out, and see by switchyard sweep strategy.{knob}=false,true whether "
                    "losses are equal"
                )
        degrees = Degrees.resolve(job.strategy, n_ranks)
        typed = typed_value("train.steps", words)
        native = job.strategy.engine is EngineName.native
        if not native:  # whose routing is pinned in training only
            job = replace(job, train=replace(job.train, eval_sequences=0))
        precision = FP64 if native else FP32
        job, not_compared = _in(precision, job)
        scaled = scale_down(job, degrees, job.train.steps if typed else STEPS)
        validate(scaled, n_ranks)
        return cls(strategy, n_ranks, scaled, degrees, not_compared)

    def check_device(self, device: str) -> None:
        """Refuse what the first of this machine's devices of that kind cannot do. What a job only promises of its speed
        float64 does not keep, and nobody holds it to that: experts are a loop, AdamW has no kernel, nothing is timed.

        Raises:
            ConfigError: one line that says what to change.
        """
        job = self.scaled
        unpromised = replace(
            job,
            strategy=replace(job.strategy, rows=RowRoom.exact),
            optim=replace(job.optim, one_pass=False),
            measure=replace(job.measure, nvtx=False),
        )
        check_device(unpromised, self.degrees, torch.device(device, 0))

    @property
    def native(self) -> bool:
        """Whether it is our own engine's."""
        return self.scaled.strategy.engine is EngineName.native

    @property
    def trial(self) -> Trial:
        """What each of its ranks runs."""
        job = self.scaled
        documents = job.data.boundaries is not Boundaries.none
        return Trial(
            job.model,
            job.strategy,
            job.overlap,
            job.precision,
            job.data.sequence_length,
            job.train,
            BatchMaker(SEPARATOR if documents else None, job.data.boundaries is Boundaries.attention),
            replace(job.optim, clip_norm=CLIP_NORM if job.optim.clip_norm is not None else None, eps=EPS),
        )

    @property
    def groups(self) -> dict[str, int]:
        """Sizes of what a sum can go wrong over, by what a user calls them."""
        degrees = {name: getattr(self.degrees, name) for name in ("dp_replicate", "dp_shard", "tp", "ep", "pp", "dp")}
        train = self.scaled.train
        return {f"strategy.{name}": size for name, size in degrees.items() if name != "dp"} | {
            "all data-parallel ranks": self.degrees.dp,
            "micro-batches": train.micro_batches(self.degrees.dp, self.degrees.pp),
            "all ranks": self.degrees.world,
        }

    @property
    def layout(self) -> str:
        """Its degrees, in short."""
        strategy = self.scaled.strategy
        parts = [f"{name}={n}" for name in (*DENSE, "ep", "etp") if (n := getattr(self.degrees, name)) > 1]
        if self.degrees.pp > 1:
            parts.append(strategy.schedule.value)
        return " ".join(parts)


def _in(precision: PrecisionConfig, job: JobConfig) -> tuple[JobConfig, tuple[str, ...]]:
    """`job` in `precision`, and its words that are left out: float64 has no halves, and no grouped products."""
    backend, words = job.model.expert_backend, []
    if backend in OURS or (backend is ExpertBackend.grouped_mm and precision is FP64):
        words.append(f"model.expert_backend={backend.value}")
        job = replace(job, model=replace(job.model, expert_backend=ExpertBackend.auto))
    if job.optim.halves:
        words.append("optim.halves=true")
        job = replace(job, optim=replace(job.optim, halves=False))
    return replace(job, precision=precision), tuple(words)


def _least_ranks(strategy: StrategyConfig) -> int:
    """With two ranks wherever the rest of the world is to go, or more where experts are divided over more."""
    fixed = math.prod(degree for name in DENSE if (degree := getattr(strategy, name)) != -1)
    for rest in range(2 if any(getattr(strategy, name) == -1 for name in DENSE) else 1, MOST_REST):
        with suppress(ConfigError):
            return Degrees.resolve(strategy, fixed * rest).world
    return 2 * fixed  # whose refusal says what is wrong
