"""What a job does about what goes wrong by itself, as configuration."""

from dataclasses import dataclass
from enum import Enum

from models.config import ConfigError


class NonFinite(Enum):
    """What a step whose loss or gradients are not finite leads to; it moves nothing in any case."""

    fail = "fail"
    """The job ends."""
    skip = "skip"
    """It goes on; after several in a row it goes back to the newest checkpoint."""


@dataclass
class RecoveryConfig:
    """Limits in seconds, 0 is none: a rank that is longer in one phase is killed, with its stacks left behind. A
    collective gives up after ten minutes by itself (parallel/world.py), and then cannot say who was late for it: a
    limit above that is for a rank that no other waits for in a collective."""

    name: str = "default"
    """Name of the preset, as in recovery=NAME."""
    start_limit_s: float = 1800.0
    """Building and sharding the model, reading weights to start from."""
    load_limit_s: float = 1800.0
    """Reading a checkpoint to go on from."""
    first_step_limit_s: float = 3600.0
    """Any phase of an attempt's first step, in which kernels may be compiled and tuned."""
    step_limit_s: float = 300.0
    """Any phase of a later step: the wait for a batch, one forward or backward, the update, a row of metrics."""
    eval_limit_s: float = 1800.0
    """A whole evaluation."""
    save_limit_s: float = 1800.0
    """What a save keeps training from, or a deep trace, or the last words of a job."""
    stop_grace_s: float = 25.0
    """After SIGTERM, within which a job stops in order; then it ends as it is. torchrun kills after 30."""
    non_finite: NonFinite = NonFinite.skip
    """A step whose loss or gradient norm is not finite moves nothing. skip goes on, fail ends the job there."""
    non_finite_in_a_row: int = 3
    """non_finite=skip: after so many such steps in a row, go back to the newest checkpoint."""
    rollbacks: int = 2
    """How often to go back for the same steps, until one after them is finite; then the job ends as diverged."""
    check_replicas_every: int = 0
    """Steps between comparisons of what several ranks hold, bit by bit; also before every checkpoint. 0: never."""

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        phases = ("start", "load", "first_step", "step", "eval", "save")
        for name in [*(f"{phase}_limit_s" for phase in phases), "stop_grace_s"]:
            if getattr(self, name) < 0:
                what = "" if name == "stop_grace_s" else "; 0 sets no limit"
                raise ConfigError(f"recovery.{name}={getattr(self, name)}: set it to 0 or more{what}")
        for name, least in (("non_finite_in_a_row", 1), ("rollbacks", 0), ("check_replicas_every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"recovery.{name}={getattr(self, name)}: set it to {least} or more")
