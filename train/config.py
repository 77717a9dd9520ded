"""What a run is, beside its model and layout: the typed fields of `train.*`, `run.*`, `optim.*` and `checkpoint.*`."""

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from models.config import ConfigError


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Moments(Enum):
    full = "full"
    bfloat16 = "bfloat16"


class Schedule(Enum):
    cosine = "cosine"
    wsd = "wsd"
    constant = "constant"


@dataclass
class RunConfig:
    name: Optional[str] = None
    """Name of the run folder below run.root; null makes one from time, model and strategy. An old name resumes."""
    root: str = "runs"
    """Where run folders are made; relative to where the job is started."""
    dir: Optional[str] = None
    """The run folder itself, in place of run.root/run.name."""


@dataclass
class TrainConfig:
    steps: int = 100
    """Optimizer steps of the whole job, those before a resume included."""
    global_batch_size: int = 16
    """Sequences per step over all ranks; the same for every layout."""
    micro_batch_size: Optional[int] = None
    """Sequences per rank and forward; null takes a rank's whole share at once. The rest is accumulation."""
    seed: int = 0
    """Seed of initial weights, sample order and synthetic tokens."""
    log_every: int = 10
    """Steps between rows of metrics; the first and last step always get one."""
    eval_every: int = 0
    """Steps between evaluations on held-out text; 0 evaluates at the end only."""
    eval_sequences: int = 32
    """Held-out sequences per evaluation, the same in every layout; 0 never evaluates."""
    device: Device = Device.auto
    """auto takes this rank's GPU where there is one; cpu and cuda force it."""

    def check(self) -> None:
        """Refuse values that no run can have.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        least = {"steps": 1, "global_batch_size": 1, "log_every": 1, "eval_every": 0, "eval_sequences": 0, "seed": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"train.{name}={getattr(self, name)}: set it to at least {minimum}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError(f"train.micro_batch_size={self.micro_batch_size}: set it to at least 1, or null")

    def micro_batch(self, dp: int, pp: int = 1) -> int:
        """Sequences per forward on each of `dp` data-parallel ranks, in a pipeline of `pp` ranks.

        Raises:
            ConfigError: if the global batch does not divide.
        """
        share, rest = divmod(self.global_batch_size, dp)
        if rest:
            raise ConfigError(
                f"train.global_batch_size={self.global_batch_size} is not divisible by {dp} data-parallel ranks: "
                f"set it to a multiple of {dp}, as {(share + 1) * dp}"
            )
        micro = self.micro_batch_size or share
        if self.micro_batch_size is None and pp > 1:
            # At least two a rank fill every schedule, and a multiple of the ranks suits those that go in rounds.
            counts = [n for n in range(2 * pp, share + 1, pp) if share % n == 0 and n % 2 == 0]
            if not counts:
                raise ConfigError(
                    f"train.global_batch_size={self.global_batch_size} gives each of {dp} data-parallel ranks {share} "
                    f"sequences, and a pipeline of {pp} ranks wants {2 * pp} micro-batches or more: set it to a "
                    f"multiple of {2 * pp * dp}, or set train.micro_batch_size"
                )
            micro = share // counts[0]
        if share % micro:
            raise ConfigError(
                f"train.micro_batch_size={micro} does not divide the {share} sequences of a rank "
                f"(train.global_batch_size={self.global_batch_size} ÷ {dp} data-parallel ranks): "
                f"set it to a divisor of {share}, or null"
            )
        return micro

    def micro_batches(self, dp: int, pp: int = 1) -> int:
        """Micro-batches of a step on each rank; raises as `micro_batch`."""
        return self.global_batch_size // dp // self.micro_batch(dp, pp)

    def eval_micro_batch(self, dp: int, pp: int = 1) -> int:
        """Sequences per evaluation forward on each of `dp` ranks: as many as in training, or fewer that divide.

        Raises:
            ConfigError: if the evaluation's sequences do not divide over the ranks.
        """
        share, rest = divmod(self.eval_sequences, dp)
        if rest:
            raise ConfigError(
                f"train.eval_sequences={self.eval_sequences} is not divisible by {dp} data-parallel ranks: "
                f"set it to a multiple of {dp}, as {(share + 1) * dp}"
            )
        return next((n for n in range(min(self.micro_batch(dp, pp), share), 0, -1) if share % n == 0), 1)


@dataclass
class OptimConfig:
    name: str = "adamw"
    """Name of the preset, as in optim=NAME."""
    lr: float = 3e-4
    """Peak learning rate."""
    schedule: Schedule = Schedule.cosine
    """After warm-up: cosine to min_lr_ratio, wsd (constant, then a linear decay over the last part) or constant."""
    warmup_steps: int = 10
    """Steps over which the rate rises linearly from 0."""
    decay_fraction: float = 0.2
    """schedule=wsd: the last part of the job, over which the rate falls."""
    min_lr_ratio: float = 0.1
    """Rate at the end, as a part of the peak."""
    beta1: float = 0.9
    """Decay of the gradient's running mean."""
    beta2: float = 0.95
    """Decay of the squared gradient's running mean."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; norms have none."""
    clip_norm: Optional[float] = 1.0
    """Largest global gradient norm; null measures and does not clip."""
    one_pass: bool = False
    """Clip, update and leave a step out in one pass over memory (on a GPU a kernel a tensor); false: as torch does."""
    moments: Moments = Moments.full
    """Both moments' dtype: full is the masters', bfloat16 rounds them stochastically (takes one_pass=true)."""
    halves: bool = False
    """zero1: of masters that no other rank has, keep only the 16 bits that their bfloat16 lacks (takes one_pass)."""

    def check(self) -> None:
        """Refuse values that no optimizer has.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        if self.lr < 0:
            raise ConfigError(f"optim.lr={self.lr}: set it to 0 or more")
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.warmup_steps={self.warmup_steps}: set it to 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name}={getattr(self, name)}: set it in [0, 1)")
        for name in ("decay_fraction", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name}={getattr(self, name)}: set it in [0, 1]")
        if self.eps < 1e-30:  # in float32 much less is 0, and 0/0 the step of a weight without gradient
            raise ConfigError(f"optim.eps={self.eps}: set it to at least 1e-30, as 1e-8")
        if self.weight_decay < 0:
            raise ConfigError(f"optim.weight_decay={self.weight_decay}: set it to 0 or more")
        if self.moments is not Moments.full and not self.one_pass:
            raise ConfigError(
                f"optim.moments={self.moments.value}: torch's AdamW keeps moments as it keeps weights; set it to full, "
                "or optim.one_pass=true"
            )
        if self.halves and not self.one_pass:
            raise ConfigError(
                "optim.halves=true: torch's AdamW reads and writes whole masters; set it to false, or "
                "optim.one_pass=true"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"optim.clip_norm={self.clip_norm}: set it above 0, or null for no clipping")


@dataclass
class CheckpointConfig:
    name: str = "default"
    """Name of the preset, as in checkpoint=NAME."""
    every: int = 0
    """Steps between checkpoints; 0 saves at the end only, if at_end."""
    at_end: bool = True
    """Save after the last step."""
    keep: int = 2
    """Checkpoints kept, newest first; 0 keeps all."""

    def check(self) -> None:
        """Refuse negative counts.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        for name in ("every", "keep"):
            if getattr(self, name) < 0:
                raise ConfigError(f"checkpoint.{name}={getattr(self, name)}: set it to 0 or more")
