"""`python -m harness.stamped STAMPS key=value …`: a training job that says when it was where, by its own clock.

Each rank appends `{rank, pid, what, t}` lines to STAMPS, t in nanoseconds of CLOCK_BOOTTIME:

    step N begin, step N end      the loader is asked for its batch; the update is issued
    save begin, save end          what a save holds training up for
    load begin, load end          looking for a checkpoint, and reading it
    eval begin, eval end

Nothing of the ledger is asked: the books are compared with this. With STAMPED_CLOCK_BACK_S=N the wall clock stands N
seconds back from torchrun's first restart on.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import train.__main__
import train.loop
from train.checkpoint.store import CheckpointStore
from train.data.loader import BatchLoader
from train.failure import exit_at_once
from train.step import OptimizerStep


def stamp(descriptor: int, what: str) -> None:
    """Append one line: a write that no death takes back."""
    t = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    line = {"rank": int(os.environ["RANK"]), "pid": os.getpid(), "what": what, "t": t}
    os.write(descriptor, (json.dumps(line) + "\n").encode())


def install(descriptor: int) -> None:
    """Put the stamps into this process."""
    asked, ended = count(1), count(1)

    def around(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def stamped(*args: Any, **kwargs: Any) -> Any:
            stamp(descriptor, f"{what} begin")
            try:
                return function(*args, **kwargs)
            finally:
                stamp(descriptor, f"{what} end")

        return stamped

    following, step = BatchLoader.__next__, OptimizerStep.__call__

    def stamped_next(loader: BatchLoader) -> Any:
        stamp(descriptor, f"step {next(asked)} begin")
        return following(loader)

    def stamped_step(self: OptimizerStep, *args: Any) -> Any:
        result = step(self, *args)
        stamp(descriptor, f"step {next(ended)} end")
        return result

    BatchLoader.__next__ = stamped_next  # type: ignore[method-assign]
    OptimizerStep.__call__ = stamped_step  # type: ignore[method-assign]
    CheckpointStore.save = around(CheckpointStore.save, "save")  # type: ignore[method-assign]
    CheckpointStore.finish = around(CheckpointStore.finish, "save")  # type: ignore[method-assign]
    CheckpointStore.resume = around(CheckpointStore.resume, "load")  # type: ignore[method-assign]
    train.loop.evaluate = around(train.loop.evaluate, "eval")


def set_clock_back(seconds: int) -> None:
    """In this process."""
    wall_s, wall_ns = time.time, time.time_ns
    time.time = lambda: wall_s() - seconds
    time.time_ns = lambda: wall_ns() - seconds * 1_000_000_000


def main() -> None:
    """Run the job."""
    path, *words = sys.argv[1:]
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        set_clock_back(int(os.environ.get("STAMPED_CLOCK_BACK_S", 0)))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    install(descriptor)
    train.__main__.main(words)
    exit_at_once(0)  # as train's own does


if __name__ == "__main__":
    main()
