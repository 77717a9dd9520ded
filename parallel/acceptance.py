"""Whether every rank takes the job, asked before any of them waits for the others in a process group.

    a rank that takes it    adds 1 to `taken`; the last one sets `verdict` to nothing
    a rank that does not    sets `verdict` to its line, and ends
    who has taken it        waits for `verdict`, and refuses too if it is a line

Wrong words are refused by all ranks at once. But one node may lack the folder, the text or the GPU that the others
have, and these would wait for it until the process group's timeout.
"""

import platform
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError, Store

from models.config import ConfigError
from parallel.world import Launch

TELL_TIMEOUT = timedelta(seconds=10)
"""How long a rank that refuses looks for the others: it is there to end."""


def wait_for_acceptance(store: Store, world_size: int) -> None:
    """Take the job, and return when all ranks have.

    Raises:
        ConfigError: if another one refuses, with its host and its line.
    """
    if store.add("taken", 1) == world_size:
        store.set("verdict", "")
    if line := store.get("verdict").decode():
        raise ConfigError(line)


def tell_refusal(launch: Launch, error: ConfigError) -> None:
    """Say `error` to the ranks that take the job, if there are others. Nothing goes wrong here: the error is enough."""
    if launch.world_size > 1:
        with suppress(DistError, OSError, ValueError, RuntimeError):
            store = launch.open_store(TELL_TIMEOUT)
            store.set("verdict", f"on {platform.node()}: {error}")
