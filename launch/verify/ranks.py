"""A function on N fresh processes of this machine that form one process group.

Fresh, for engines keep state in modules; forked from a server that has imported torch once, so a rank costs a second.
What a rank prints goes to a file of its own, and out of the way of the table.
"""

import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from parallel.world import Launch, World, choose_device, is_peer_failure

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(seconds=120)
"""A rank that waits longer for the others is taken to hang."""
GRACE_S = 3.0
"""How long the peers of a failed rank may take to say what they saw."""


class RankFailed(RuntimeError):
    """A rank ended without a result; `trace` is its traceback, or how it died."""

    def __init__(self, rank: int, summary: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {summary}")
        self.trace = trace


@dataclass(frozen=True)
class _Failure:
    summary: str
    trace: str
    peer: bool
    """Whether it only says that another rank went away."""


def run_ranks(n_ranks: int, device: str, call: Callable[[World], T]) -> list[T]:
    """`call`, which can be pickled, on each of `n_ranks` ranks, on `device` (cpu or cuda); what they returned, by rank.

    Raises:
        RankFailed: for the first rank that raised or died; the others are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch.verify.trial", "torch._dynamo"])
    with tempfile.TemporaryDirectory(prefix="switchyard-verify-") as name:
        folder = Path(name)
        pipes: list[Connection] = []
        processes: list[ForkServerProcess] = []
        try:
            for rank in range(n_ranks):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_be_rank, args=(theirs, rank, n_ranks, device, folder, call), daemon=True
                )
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            return _collect(pipes, processes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection], processes: list[ForkServerProcess]) -> list[T]:
    results: dict[int, T] = {}
    failures: dict[int, _Failure] = {}
    deadline = None
    while len(results) + len(failures) < len(pipes):
        waited_for = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results and rank not in failures}
        ready = wait(list(waited_for), timeout=0.2)
        for pipe, rank in [(pipe, rank) for pipe, rank in waited_for.items() if pipe in ready]:
            try:
                answer = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                processes[rank].join()
                died = f"died with exit code {processes[rank].exitcode}"
                answer = _Failure(died, died, peer=False)
            if isinstance(answer, _Failure):
                failures[rank] = answer
                deadline = deadline or time.monotonic() + GRACE_S
            else:
                results[rank] = answer
        if deadline and (time.monotonic() > deadline or any(not failure.peer for failure in failures.values())):
            break
    if failures:
        # An error of the transport speaks of a peer, and can be here before the peer's own.
        rank = min(failures, key=lambda rank: (failures[rank].peer, rank))
        raise RankFailed(rank, failures[rank].summary, failures[rank].trace)
    return [results[rank] for rank in range(len(pipes))]


def _be_rank(
    pipe: Connection, rank: int, n_ranks: int, device: str, folder: Path, call: Callable[[World], object]
) -> None:
    log = os.open(folder / f"rank-{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    # As under torchrun, which engines ask the environment for.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        # One thread: ranks share the cores, and sums come in one order.
        torch.set_num_threads(1)
        launch = Launch(rank, n_ranks, rank, n_ranks, launched=False)
        store = dist.FileStore(str(folder / "store"), n_ranks)
        world = World.join(launch, choose_device(device, launch), store, COLLECTIVE_TIMEOUT)
        answer: object = call(world)
        world.leave()
    except BaseException as error:
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        answer = _Failure(said, traceback.format_exc(), is_peer_failure(error))
    with suppress(OSError):  # nobody listens any more
        pipe.send_bytes(pickle.dumps(answer))


def _end_with_parent() -> None:
    """Whoever killed `verify` did not mean its ranks to go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
