"""What a job does about faults, as configuration."""

from dataclasses import dataclass
from enum import Enum

from models.config import ConfigError


class NonFinite(Enum):
    """What a step whose loss or gradients are not finite leads to. Its update is left out in any case."""

    fail = "fail"
    """The job ends."""
    skip = "skip"
    """It goes on; after several in a row it goes back to the newest checkpoint."""


@dataclass
class RecoveryConfig:
    """What a job does about faults."""

    name: str = "default"
    """Name of the preset, as in recovery=NAME."""
    non_finite: NonFinite = NonFinite.skip
    """A step whose loss or gradient norm is not finite moves nothing. skip goes on, fail ends the job there."""
    non_finite_in_a_row: int = 3
    """non_finite=skip: after so many such steps in a row, go back to the newest checkpoint."""
    rollbacks: int = 2
    """How often at most to go back to one and the same checkpoint; then the job ends as diverged."""
    check_replicas_every: int = 0
    """Steps between comparisons of what several ranks hold, bit by bit; also before every checkpoint. 0: never."""

    def check(self) -> None:
        """Refuse counts that mean nothing.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        least = {"non_finite_in_a_row": 1, "rollbacks": 0, "check_replicas_every": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"recovery.{name}={getattr(self, name)}: set it to {minimum} or more")
