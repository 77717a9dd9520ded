"""The run folder, made by rank 0 and seen by every rank: what a checkpoint of several nodes rests on.

rank 0       makes the folder, and an empty file with a name of this start in it
every rank   looks for that file, for a while where it is not there at once: network file systems remember what was
             not there
all          go on if all see it; or all stop, with one line that names the nodes that do not
"""

import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from models.config import ConfigError
from parallel.comm import Communicator

PATIENCE_S = 10.0
"""How long a rank looks for what rank 0 wrote."""
BETWEEN_LOOKS_S = 0.2
NAMED_HOSTS = 4


@contextmanager
def shared_folder(folder: Path, comm: Communicator, rank: int) -> Iterator[None]:
    """Have `folder`, as rank 0 names it, for as long as a run takes. Called by all ranks together.

    A start that ends with an error before anything was written leaves no empty folder behind that it has made.

    Raises:
        ConfigError: on every rank, if rank 0 cannot write there, or another does not see what it wrote.
    """
    made = _missing(folder) if rank == 0 else []
    try:
        _see_together(folder, comm, rank)
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):  # not empty: there is something to keep
                path.rmdir()
        raise


def _see_together(folder: Path, comm: Communicator, rank: int) -> None:
    mark, trouble = f".{uuid.uuid4().hex}", ""
    if rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / mark).touch()
        except OSError as error:
            trouble = f"{folder} cannot be written to ({error.strerror}): name another run.dir or run.root"
    mark, trouble = comm.broadcast_object((mark, trouble))
    if trouble:
        raise ConfigError(trouble)
    seen = comm.all_gather_object((platform.node(), _appears(folder / mark)))
    if rank == 0:
        (folder / mark).unlink(missing_ok=True)
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        raise ConfigError(
            f"{_listed(blind)} cannot see what rank 0 wrote to {folder} on {seen[0][0]}: set run.dir (or run.root) to "
            "a folder on a file system that every node sees"
        )


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not os.path.exists(file):  # Path's raises where a folder may not be searched
        if time.monotonic() > deadline:
            return False
        time.sleep(BETWEEN_LOOKS_S)
        for folder in reversed(file.parents):
            # NFS asks its server again whether a folder has changed when it is opened, and else only after half a
            # minute: this rank has looked for the run folder before, and may remember that there was none.
            with suppress(OSError):
                os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    return True


def _missing(folder: Path) -> list[Path]:
    """`folder` and those above it that are not there, innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]


def _listed(hosts: Sequence[str]) -> str:
    rest = len(hosts) - NAMED_HOSTS
    return ", ".join(hosts[:NAMED_HOSTS]) + (f" and {rest} more" if rest > 0 else "")
