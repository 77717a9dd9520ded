"""Faults that a user rehearses, and what a job does about those that come by themselves, as configuration."""

from dataclasses import dataclass, field
from enum import Enum

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
    nan = "nan"
    """The step's loss, and so its gradients, are not finite."""
    corrupt = "corrupt"
    """One byte of this rank's part of the step's checkpoint is flipped once it is committed."""
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
    """To whom."""
    step: int = 0
    """In which step, or the save after it; of no meaning at start and load."""
    place: Place = Place.forward
    """Where."""
    seconds: float = 0.0
    """slow: for how long."""
    attempt: int = 1
    """In which start of the job; 0: in every one."""


@dataclass
class FaultsConfig:
    """Fault injection: an outage rehearsed. Every fault happens once an attempt, and is stamped in the run's folder."""

    name: str = "off"
    """Name of the preset, as in faults=NAME."""
    inject: list[FaultConfig] = field(default_factory=list)
    """What happens, as in 'faults.inject=[{what: sigkill, rank: 1, step: 7}]'."""

    def check(self, world_size: int) -> None:
        """Refuse faults that cannot happen.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        for index, fault in enumerate(self.inject):
            key = f"faults.inject[{index}]"
            if not 0 <= fault.rank < world_size:
                raise ConfigError(f"{key}.rank={fault.rank}: there is no such rank among {world_size}")
