"""What a job does about what goes wrong by itself, as configuration."""

from dataclasses import dataclass

from models.config import ConfigError


@dataclass
class RecoveryConfig:
    """Limits in seconds, 0 is none: a rank that is longer in one phase is killed, with its stacks left behind. A
    collective gives up after ten minutes by itself (parallel/world.py), and then cannot say who was late for it."""

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
