"""A pool of gloo processes that outlives the test, so that a case costs a process group and not an interpreter.

The owner and each worker share one pipe. A case goes down it, a report comes back, and nothing else is ever sent. A
pool that saw a failure is killed whole: a rank left inside a collective cannot be talked out of it.
"""

import faulthandler
import gc
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist

# Imported once, in the fork server: a second or two for each worker. The last brings nearly all of ours.
PRELOAD = ["torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch._dynamo"]
PRELOAD += ["train.__main__"]
COLLECTIVE_TIMEOUT = timedelta(seconds=30)
GRACE = 2.0  # seconds the peers of a failed rank have left to say what they saw


class WorkerFailure(RuntimeError):
    """A case failed.

    Attributes:
        rank: the rank that failed first, before any that only lost its connection; of silent ranks, the lowest.
        traceback: that rank's traceback, or where it stood when time was up.
        others: a line for every other rank, in rank order.
    """

    def __init__(self, rank: int, traceback: str, others: list[str]) -> None:
        super().__init__("\n".join([f"rank {rank} failed first:", traceback.rstrip(), *others]))
        self.rank, self.traceback, self.others = rank, traceback, others


@dataclass(frozen=True)
class _Case:
    world_size: int
    folder: str  # new for each case: a file store must not meet an older one
    path: list[str]  # the owner's sys.path
    call: bytes  # pickled apart, since the function can be imported only once the path is set


@dataclass(frozen=True)
class _Report:
    stamp: float  # monotonic seconds; one clock for all processes of a host
    result: bytes = b""
    error: str = ""  # empty when all went well
    line: str = "finished"


@dataclass(frozen=True)
class _Worker:
    process: ForkServerProcess
    pipe: Connection


class WorkerPool:
    """Gloo processes started at need and kept: `run(4, ...)` after `run(2, ...)` adds two."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        _start_server()
        self._workers: list[_Worker] = []

    def run(
        self, world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0, **kwargs: Any
    ) -> list[Any]:
        """Call `function(*args, **kwargs)` on every rank of a fresh gloo group and return the results in rank order.

        Args:
            world_size: ranks that take part; the pool grows to it.
            function: importable by name, so defined at the top of a module.
            *args: pickled; tensors arrive as copies, and so do those in the results.
            timeout: seconds until the case is given up. The pool keeps this one, `function` does not see it.
            **kwargs: as `args`.

        Raises:
            WorkerFailure: a rank raised, died or did not answer in time. The next run starts with new processes.
            PicklingError: the call cannot be sent. No process is lost.
        """
        call = pickle.dumps((function, args, kwargs))
        self._grow(world_size)
        with tempfile.TemporaryDirectory(prefix="worker-pool-") as folder:
            case = pickle.dumps(_Case(world_size, folder, sys.path, call))
            try:
                for worker in self._workers[:world_size]:
                    with suppress(OSError):  # it died while idle, which `_gather` sees and can name
                        worker.pipe.send_bytes(case)
                reports = self._gather(self._workers[:world_size], folder, timeout)
                _raise_first(reports)
            except BaseException:  # an interrupt too leaves ranks inside the case
                self.close()
                raise
        return [pickle.loads(report.result) for report in reports]

    def pids(self) -> list[int]:
        """The process id of every living worker, in rank order."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def close(self) -> None:
        """Kill every worker and wait until it is reaped. The pool may be used again."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        self._workers.clear()

    def _grow(self, world_size: int) -> None:
        for rank in range(len(self._workers), world_size):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(rank, theirs), name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()  # the worker must hold the only other end: its death is then an end of file here
            self._workers.append(_Worker(process, ours))

    def _gather(self, workers: list[_Worker], folder: str, timeout: float) -> list[_Report]:
        """One report a rank, in rank order, written here for the ranks that died or stayed silent."""
        reports: dict[int, _Report] = {}
        silent = {rank: worker.pipe for rank, worker in enumerate(workers)}
        now = time.monotonic()
        deadline = now + timeout
        while silent and (ready := wait(silent.values(), max(0.0, deadline - now))):
            for rank in [rank for rank, pipe in silent.items() if pipe in ready]:
                try:
                    reports[rank] = pickle.loads(silent.pop(rank).recv_bytes())
                except (EOFError, OSError):
                    stamp = time.monotonic()
                    workers[rank].process.join(timeout=1.0)
                    line = f"died without a word, exit code {workers[rank].process.exitcode}"
                    reports[rank] = _Report(stamp, error=line, line=line)
            now = time.monotonic()
            if any(report.error for report in reports.values()):
                deadline = min(deadline, now + GRACE)

        line = f"no answer {'while its peers failed' if reports else f'within {timeout:g} s'}"
        for rank, stack in _stacks(workers, list(silent), folder).items():
            reports[rank] = _Report(time.monotonic(), error=f"{line}\n{stack}", line=line)
        return [reports[rank] for rank in range(len(workers))]


def _start_server() -> None:
    """The one of this process, unless it runs. It must import our code, and Python 3.11 does not tell it our path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()


def _raise_first(reports: list[_Report]) -> None:
    failed = [rank for rank, report in enumerate(reports) if report.error]
    if failed:
        # An error of the transport speaks of a peer, and can be here before the peer's death is seen: it comes last.
        first = min(failed, key=lambda rank: ("gloo/transport" in reports[rank].error, reports[rank].stamp))
        others = [f"rank {rank}: {report.line}" for rank, report in enumerate(reports) if rank != first]
        raise WorkerFailure(first, reports[first].error, others)


def _stacks(workers: list[_Worker], ranks: list[int], folder: str) -> dict[int, str]:
    """Where each of `ranks` stands, most recent call first; empty for one that had not begun the case."""
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(workers[rank].process.pid or 0, signal.SIGUSR1)
    if ranks:
        time.sleep(0.5)  # the signal handler writes in milliseconds, but nothing tells when it has
    paths = {rank: _stack_path(folder, rank) for rank in ranks}
    return {rank: path.read_text() if path.exists() else "" for rank, path in paths.items()}


def _stack_path(folder: str, rank: int) -> Path:
    return Path(folder, f"stack-{rank}")


def _serve(rank: int, pipe: Connection) -> None:
    """A worker's life: cases, one after another, until the pipe ends or one fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the whole terminal; only the owner answers it
    threading.Thread(target=_die_with_owner, daemon=True).start()
    gc.freeze()  # what the fork server imported is no garbage, and walking it is most of what a case would cost
    environment, folder = dict(os.environ), os.getcwd()
    with suppress(EOFError):
        while True:
            case: _Case = pickle.loads(pipe.recv_bytes())
            _reset(environment, folder)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(case.world_size))
            sys.path[:] = case.path
            with _stack_path(case.folder, rank).open("w") as stack:
                faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
                report = _run(rank, case, pipe)
                faulthandler.unregister(signal.SIGUSR1)
            pipe.send_bytes(pickle.dumps(report))


def _die_with_owner() -> None:
    """End this process, whatever it is doing, when the owner is gone, however it went."""
    owner = multiprocessing.parent_process()
    if owner is not None:
        owner.join()  # a pipe only the owner holds; the fork server is our parent to the system, and outlives it
    os.kill(os.getpid(), signal.SIGKILL)


def _reset(environment: dict[str, str], folder: str) -> None:
    """Take back what a case may have left behind in this process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    torch._dynamo.reset()
    gc.collect()


def _run(rank: int, case: _Case, pipe: Connection) -> _Report:
    """Run the case in a process group of its own. A failure is sent from here and ends the process."""
    try:
        store = dist.FileStore(str(Path(case.folder, "store")), case.world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=case.world_size, timeout=COLLECTIVE_TIMEOUT)
        function, args, kwargs = pickle.loads(case.call)
        result = pickle.dumps(function(*args, **kwargs))
        if dist.is_initialized():  # code under test may have torn it down itself
            dist.barrier()
    except BaseException as error:
        stamp = time.monotonic()
        line = traceback.format_exception_only(error)[0].splitlines()[0]
        pipe.send_bytes(pickle.dumps(_Report(stamp, error=traceback.format_exc(), line=line)))
        sys.stdout.flush()
        # Not a return: peers inside a collective learn of it from closed sockets, and destroying a group that has work
        # in flight, as one that failed may, does not close them.
        os._exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    sys.stdout.flush()
    return _Report(time.monotonic(), result=result)
