"""Faults that a user rehearses, and what a job does about those that come by themselves, as configuration."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from models.config import ConfigError


class Fault(Enum):
    """What can be made to happen to one rank."""

    crash = "crash"
    """An exception."""
    sigkill = "sigkill"
    sigterm = "sigterm"
    sigstop = "sigstop"
    """Stands still, as a hang does."""
    slow = "slow"
    """Sleeps for `seconds` at `place`: at forward a slow rank, at data a slow loader, at save a slow disk."""
    non_finite = "non_finite"
    """What this rank adds to the step's loss (in a pipeline: its stages' part) is not finite, nor its gradients."""
    corrupt = "corrupt"
    """One bit of this rank's part of the step's checkpoint is flipped once it is committed."""
    fail = "fail"
    """Writing this rank's part of the step's checkpoint fails, as on a full disk."""


class Place(Enum):
    """Where in a job."""

    start = "start"
    """Before the model is built."""
    load = "load"
    """While a checkpoint is read; nothing, where there is none to read."""
    data = "data"
    """A step's begin, at the wait for its batch."""
    forward = "forward"
    """In the step's first forward."""
    backward = "backward"
    optimizer = "optimizer"
    save = "save"
    """In the save after the step, while training is held up by it."""
    write = "write"
    """While the step's checkpoint is written to the disk, perhaps behind later steps; its files are half there."""
    rename = "rename"
    """Just before the checkpoint gets its name. On rank 0."""


@dataclass
class FaultConfig:
    """One fault."""

    what: Fault = Fault.crash
    """What happens."""
    rank: int = 0
    """To which rank."""
    step: int = 0
    """In which step, or the save after it; of no meaning at start and load."""
    place: Optional[Place] = None
    """Where; null: at write for fail, else at forward. non_finite and corrupt take none."""
    seconds: float = 0.0
    """slow: for how long."""
    attempt: int = 1
    """In which start of the job; 0: in every one."""

    @property
    def at(self) -> Place | None:
        """Where; None for what has no place among them."""
        if self.what in OWN_PLACE:
            return None
        return self.place or (Place.write if self.what is Fault.fail else Place.forward)

    def check(self, key: str, world_size: int, steps: int) -> None:
        """Refuse what cannot happen in a job of `steps` steps. `key` names this fault.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        what = f"{key}.what={self.what.value}"
        if not 0 <= self.rank < world_size:
            ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
            raise ConfigError(f"{key}.rank={self.rank}: there is no such rank among {ranks}")
        if self.attempt < 0:
            raise ConfigError(f"{key}.attempt={self.attempt}: set it to 1 or more, or 0 for every attempt")
        if self.place and self.what in OWN_PLACE:
            raise ConfigError(f"{key}.place={self.place.value}: {what} takes no place; leave it out")
        if self.what is Fault.fail and self.at not in FAILING:
            places = " or ".join(place.value for place in FAILING)
            raise ConfigError(
                f"{key}.place={self.place.value if self.place else None}: {what} fails a save; set it to {places}"
            )
        if self.at is Place.rename and self.rank != 0:
            raise ConfigError(f"{key}.rank={self.rank}: rank 0 renames; set it to 0, or {key}.place to another")
        if self.at in STEPLESS and self.step:
            raise ConfigError(f"{key}.step={self.step}: nothing has a step at {self.at.value}; leave it out")
        if self.at not in STEPLESS and not 1 <= self.step <= steps:
            raise ConfigError(f"{key}.step={self.step}: set it in 1 to {steps} (train.steps)")
        if self.what is Fault.slow and self.seconds <= 0:
            raise ConfigError(f"{key}.seconds={self.seconds}: {what} sleeps so long; set it above 0")
        if self.what is not Fault.slow and self.seconds:
            raise ConfigError(f"{key}.seconds={self.seconds}: {what} reads no seconds; leave it out")


OWN_PLACE = (Fault.non_finite, Fault.corrupt)
"""What happens in a place of its own: in the loss, and after a checkpoint got its name."""
FAILING = (Place.write, Place.rename)
"""Where a save can fail."""
STEPLESS = (Place.start, Place.load)
"""Once an attempt."""


@dataclass
class FaultsConfig:
    """Fault injection: an outage rehearsed. Every fault happens once an attempt, and is stamped in the run's folder."""

    name: str = "off"
    """Name of the preset, as in faults=NAME."""
    inject: list[FaultConfig] = field(default_factory=list)
    """What happens, as in 'faults.inject=[{what: sigkill, rank: 1, step: 7}]'."""

    def check(self, world_size: int, steps: int) -> None:
        """Refuse faults that cannot happen in a job of `steps` steps.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        for index, fault in enumerate(self.inject):
            fault.check(f"faults.inject[{index}]", world_size, steps)
