"""How one rank's refusal of the job reaches the others, which take it (own_store.py has the way)."""

import platform
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError

from models.config import ConfigError
from parallel.world import TIMEOUT, Launch

LAUNCHER_ENDS_THEM = timedelta(seconds=10)
"""How long a rank that refuses looks for others on its own machine only: when it ends, torchrun ends them."""


def tell_refusal(launch: Launch, error: ConfigError) -> None:
    """Say `error` to the other ranks, if there are any, and return when they have heard: on other machines nothing but
    this keeps them from waiting for this one. Nothing goes wrong here: the error is enough."""
    if launch.world_size > 1:
        alone = launch.local_world_size == launch.world_size
        with suppress(ConfigError, DistError, OSError, ValueError, RuntimeError):
            launch.open_store(LAUNCHER_ENDS_THEM if alone else TIMEOUT, f"on {platform.node()}: {error}")
