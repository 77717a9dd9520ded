"""What an onlooker sees of a launch: when each worker began, and when it was no more, by CLOCK_BOOTTIME."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.torchrun import TorchrunLaunch

BETWEEN_LOOKS_S = 0.02


@dataclass
class Life:
    """Of one worker, nanoseconds."""

    rank: int
    pid: int
    begin: int
    """10 ms fine."""
    gone: int | None = None


class Onlooker:
    """Looks at the workers of one agent, in a thread."""

    def __init__(self, agent: int) -> None:
        self.lives: list[Life] = []
        self._agent = agent
        self._others: set[int] = set()
        """Of another parent."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> None:
        """All are gone."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            over = self._over.is_set()  # asked first: one more look afterwards
            for life in self.lives:
                if life.gone is None and not _lives(life.pid):
                    life.gone = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._meet()
            if over:
                return
            time.sleep(BETWEEN_LOOKS_S)

    def _meet(self) -> None:
        known = self._others | {life.pid for life in self.lives}
        for pid in {int(name) for name in os.listdir("/proc") if name.isdigit()} - known:
            stat = _stat(pid)
            if stat and int(stat[1]) != self._agent:
                self._others.add(pid)
            elif stat and (rank := _rank(pid)) is not None:
                self.lives.append(Life(rank, pid, int(stat[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")))


@contextmanager
def observed(launch: TorchrunLaunch) -> Iterator[list[Life]]:
    """The lives of the launch's workers, growing; complete once the block is left, in which the launch must end."""
    onlooker = Onlooker(launch.agent_pid)
    try:
        yield onlooker.lives
    finally:
        onlooker.stop()


def _stat(pid: int) -> list[str]:
    """State, parent and so on, from the third field on; [] if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _lives(pid: int) -> bool:
    stat = _stat(pid)
    return bool(stat) and stat[0] != "Z"


def _rank(pid: int) -> int | None:
    """None: no worker, or not yet one: until it is executed its environment is the agent's."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")), None)
