"""`torchrun` as a user starts it, with nothing left running afterwards.

torchrun puts each worker in a session of its own, and a worker whose agent was killed belongs to nobody. So a launch
carries a token in its environment, which every process under it inherits: who has the token is part of the launch.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "TORCHRUN_LAUNCH_TOKEN"


@dataclass(frozen=True)
class CompletedRun:
    """A launch that ended by itself; `returncode` is the agent's, `seconds` from start to end."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


class TorchrunLaunch:
    """A launch that is still running. A context manager: whatever is left at the end is killed."""

    def __init__(self, command: list[str], cwd: Path | str | None, environment: dict[str, str]) -> None:
        self._token = uuid.uuid4().hex
        self._folder = tempfile.TemporaryDirectory(prefix="torchrun-")
        self._started = time.monotonic()
        # Files, not pipes: they can be read while they grow, and no orphan can keep their reader waiting.
        with self._path("stdout").open("w") as stdout, self._path("stderr").open("w") as stderr:
            self._agent = subprocess.Popen(
                command,
                cwd=cwd,
                env={**environment, TOKEN: self._token},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill_all()

    @property
    def agent_pid(self) -> int:
        """torchrun's own."""
        return self._agent.pid

    @property
    def running(self) -> bool:
        """Whether torchrun is."""
        return self._agent.poll() is None

    @property
    def stdout(self) -> str:
        """What has been written so far."""
        return self._path("stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What has been written so far."""
        return self._path("stderr").read_text(errors="replace")

    def worker_pids(self) -> dict[int, int]:
        """Process id by rank of the workers that live now."""
        # A worker's own children inherit its RANK, hence the look at the parent.
        return {
            int(environment["RANK"]): process.pid
            for process, environment in self._processes()
            if "RANK" in environment and process.ppid() == self._agent.pid
        }

    def wait_for(self, predicate: Callable[[Self], bool], timeout: float = 60.0) -> None:
        """Return once `predicate(self)` holds.

        Raises:
            TimeoutError: it did not within `timeout` seconds; everything is killed.
            RuntimeError: the launch ended before it did.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self._agent.poll() is not None  # asked first: what is written up to the end still counts
            if predicate(self):
                return
            if ended:
                raise RuntimeError(f"torchrun ended with {self._agent.returncode} while waited for\n{self._tail()}")
            if time.monotonic() > deadline:
                self.kill_all()
                raise TimeoutError(f"not so within {timeout:g} s\n{self._tail()}")
            time.sleep(0.05)

    def wait(self, timeout: float = 120.0) -> CompletedRun:
        """The finished run; on TimeoutError after `timeout` seconds everything is killed."""
        try:
            returncode = self._agent.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"torchrun still ran after {timeout:g} s\n{self._tail()}") from None
        finally:
            seconds = time.monotonic() - self._started
            self.kill_all()
        return CompletedRun(returncode, self.stdout, self.stderr, seconds)

    def kill_rank(self, rank: int) -> None:
        """SIGKILL one worker; KeyError when it does not live."""
        psutil.Process(self.worker_pids()[rank]).kill()

    def kill_all(self) -> None:
        """SIGKILL the agent and everything under it, and return when they are gone."""
        self._agent.kill()  # first, so that it starts no more workers
        self._agent.wait()
        while left := [process for process, _ in self._processes()]:
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=0.1)

    def _processes(self) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:  # gone, a zombie, or another user's
                continue
            if environment.get(TOKEN) == self._token:
                yield process, environment

    def _path(self, stream: str) -> Path:
        return Path(self._folder.name, stream)

    def _tail(self, characters: int = 4000) -> str:
        return f"stdout:\n{self.stdout[-characters:]}\nstderr:\n{self.stderr[-characters:]}"


def start_torchrun(
    nproc: int,
    *args: str,
    module: str = "train",
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    agent_words: Sequence[str] = (),
) -> TorchrunLaunch:
    """Start `nproc` workers of `python -m module args...` on this host; `env` is added to the environment, and
    `agent_words` to torchrun's own."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", *agent_words]
    return TorchrunLaunch([*agent, "-m", module, *args], cwd, _environment(env))


def start_nodes(
    n_nodes: int,
    nproc: int,
    *args: str,
    module: str = "train",
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    before: Mapping[int, Sequence[str]] | None = None,
) -> list[TorchrunLaunch]:
    """Start `n_nodes` agents of `nproc` workers each, of one job, as if this host were as many.

    `before`: by node, the words of a program that starts its agent in turn.
    """
    port = str(free_port())
    launches = []
    for node in range(n_nodes):
        words = ["--nnodes", str(n_nodes), "--node-rank", str(node), "--nproc-per-node", str(nproc)]
        words += ["--master-addr", "127.0.0.1", "--master-port", port, "-m", module, *args]
        command = [*(before or {}).get(node, ()), sys.executable, "-m", "torch.distributed.run", *words]
        launches.append(TorchrunLaunch(command, cwd, _environment(env)))
    return launches


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(
    nproc: int,
    *args: str,
    module: str = "train",
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> CompletedRun:
    """`start_torchrun` to its end. A failed run is returned; one not done in `timeout` seconds is a TimeoutError."""
    with start_torchrun(nproc, *args, module=module, cwd=cwd, env=env) as launch:
        return launch.wait(timeout)


def alone(*args: str, cwd: Path | str | None = None, timeout: float = 120.0) -> CompletedRun:
    """`python -m train args...` to its end: one process, and no torchrun around it."""
    with TorchrunLaunch([sys.executable, "-m", "train", *args], cwd, _environment(None)) as launch:
        return launch.wait(timeout)


def _environment(added: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment, in which the repository can be imported from any folder."""
    python_path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(python_path), **(added or {})}
