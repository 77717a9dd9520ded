"""A job whose ranks are workers of the pool: it costs its steps, and no torchrun and no interpreters.

For what a job computes, writes and says. How ranks are started, signalled and ended is torchrun's, in torchrun.py; and
the books of such a job begin with its worker, whose earlier cases they take for its start.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch.distributed as dist

from harness.torchrun import CompletedRun, free_port
from harness.train_alone import stand_alone
from harness.worker_pool import WorkerFailure, WorkerPool
from train.__main__ import main


def job_in_pool(
    pool: WorkerPool,
    ranks: int,
    *words: str,
    program: Callable[[list[str]], None] = main,
    cwd: Path | str | None = None,
    timeout: float = 120.0,
) -> CompletedRun:
    """`ranks` ranks of `python -m train words…`, or of another `program`, to their end; one rank alone is launched by
    nobody.

    Jobs of several ranks that name no folder (run.dir, run.name) want a root each: workers of one pool would have one
    name. What the ranks print is in rank order. The code is that of the rank that ended the job, and the pool's next
    case has new workers then. A program that changes more than itself wants a pool of its own.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="job-") as folder:
        code = 0
        try:
            pool.run(ranks, _rank, program, words, free_port(), cwd or folder, Path(folder), timeout=timeout)
        except WorkerFailure as failure:
            code = _exit_code(failure)
        out, err = ("".join(_file(folder, n, rank).read_text() for rank in range(ranks)) for n in (1, 2))
    return CompletedRun(code, out, err, time.monotonic() - begun)


def _exit_code(failure: WorkerFailure) -> int:
    """Of a rank that ended as a process does; any other failure is not the job's own."""
    if not (said := re.fullmatch(r"died without a word, exit code (\d+)", failure.traceback)):
        raise failure
    return int(said[1])


def _rank(
    program: Callable[[list[str]], None], words: tuple[str, ...], port: int, cwd: Path | str, folder: Path
) -> None:
    """In a worker: its group goes, and the job makes its own."""
    rank, ranks = os.environ["RANK"], os.environ["WORLD_SIZE"]
    os.chdir(cwd)
    with _written_to(_file(folder, 1, rank), _file(folder, 2, rank)):
        if ranks == "1":
            stand_alone()
        else:
            dist.destroy_process_group()
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": ranks}
        try:
            program(list(words))
        finally:
            _end_watchers()


def _file(folder: Path | str, descriptor: int, rank: int | str) -> Path:
    return Path(folder, f"{descriptor}-{rank}")


@contextmanager
def _written_to(*files: Path) -> Iterator[None]:
    """Standard output and standard error; also where the process ends in here."""
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    for descriptor, path in enumerate(files, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        for descriptor, before in enumerate(kept, start=1):
            os.dup2(before, descriptor)
            os.close(before)


def _end_watchers() -> None:
    """Those of ranks that a launcher started end after their process, and this one goes on."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "train.faults.watch" in child.cmdline():
                child.kill()
                child.wait()
