"""A start of a job in its ledger: opened by all ranks together, closed with each one's last words."""

import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import ConfigError
from parallel.comm import Communicator
from parallel.world import World, is_peer_failure
from train.failure import FAILED, INTERRUPTED, REFUSED, JobEnds
from train.ledger.events import attempt_folder, boot_id, process_started_ns, take_attempt
from train.ledger.ledger import Ledger
from train.ledger.tiles import Tiles


@dataclass(frozen=True)
class OpenAttempt:
    """Of one rank."""

    number: int
    folder: Path
    """This attempt's part of the ledger."""
    ledger: Ledger
    tiles: Tiles


@contextmanager
def open_attempt(
    run_folder: Path, comm: Communicator, world: World, main_ns: int, joined_ns: int, facts: Mapping[str, Any]
) -> Iterator[OpenAttempt]:
    """Take the next attempt's number, and write its `start` (of which `facts` are a part) and its `exit`. Called by all
    ranks together; this rank's program began at `main_ns`, and all had joined at `joined_ns`.

    Raises:
        ConfigError: on every rank, if rank 0 cannot write to the ledger.
        OSError: if this rank cannot write its start.
    """
    number, trouble = 0, ""
    if world.rank == 0:
        try:
            number = take_attempt(run_folder)
        except OSError as error:
            trouble = f"{run_folder} cannot be written to ({error.strerror}): make room there, or name another run.dir"
    number, trouble = comm.broadcast_object((number, trouble))
    if trouble:
        raise ConfigError(trouble)
    folder = attempt_folder(run_folder, number)
    folder.mkdir(exist_ok=True)  # a network file system may not show it yet
    ledger = Ledger(folder / f"rank-{world.rank:05d}.jsonl")
    ledger.write(
        "start",
        sync=True,
        required=True,
        rank=world.rank,
        ranks=world.size,
        host=platform.node(),
        boot=boot_id(),
        wall=time.time_ns(),
        process=process_started_ns(),
        main=main_ns,
        joined=joined_ns,
        **facts,
    )
    try:
        yield OpenAttempt(number, folder, ledger, Tiles(ledger, joined_ns))
    except BaseException as error:
        cause, code = _last_words(error)
        ledger.write("exit", sync=True, cause=cause, code=code)
        raise
    ledger.write("exit", sync=True, cause="finished", code=os.EX_OK)
    ledger.close()


def _last_words(error: BaseException) -> tuple[str, int]:
    if isinstance(error, ConfigError):
        return "refused", REFUSED
    if isinstance(error, JobEnds):
        return error.cause, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    return "lost_peers" if is_peer_failure(error) else "failed", FAILED
