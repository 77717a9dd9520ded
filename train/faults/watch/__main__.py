"""`python -S -P -m train.faults.watch PID RANK FIRST:STOP LIMITS FOLDER`: the watcher itself; start.py starts it."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.faults.beat import LastBeat, read_beat
from train.faults.watch.judge import Patience, Verdict, judge, overdue
from train.faults.watch.limits import Limits
from train.faults.watch.stacks import leave_stacks, stacks_path
from train.faults.watch.stamps import hanging, watch_path
from train.faults.watch.watched import Watched, state
from train.ledger.events import now_ns
from train.ledger.ledger import Ledger

BETWEEN_LOOKS_S = 0.5
OTHERS_STACKS_S = 1.5
"""How long the others of this host have to leave their stacks too, before a kill ends the job."""


class Watcher:
    """Of one rank."""

    def __init__(self, watched: Watched, pid: int, rank: int, ranks_here: range, limits: Limits, folder: Path) -> None:
        self._watched, self._pid, self._rank, self._ranks_here = watched, pid, rank, ranks_here
        self._limits, self._folder = limits, folder
        self._patience = Patience()
        self._stacks_left = False

    def watch(self) -> None:
        """Until it is gone."""
        while not self._watched.ended(BETWEEN_LOOKS_S):
            beat = read_beat(self._folder, self._rank)
            seen_s = self._patience.look(beat, time.monotonic())
            if beat is None:
                continue
            limit_s = self._limits.of(beat)
            beats, stopped = self._others() if overdue(seen_s, limit_s) else ({}, frozenset())
            verdict = judge(self._rank, {**beats, self._rank: beat}, stopped, seen_s, limit_s)
            if verdict is not Verdict.fine or self._hangs_elsewhere():
                self._leave_stacks()
            if verdict is Verdict.hangs:
                self._end(beat, seen_s, limit_s, stopped)
                break
        self._watched.ended(None)
        gone_ns = now_ns()  # before any file is opened: on a busy machine that takes its time
        last = read_beat(self._folder, self._rank)
        self._stamp("gone", gone_ns, beat=last and last.event())
        path = stacks_path(self._folder, self._rank)
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()

    def _others(self) -> tuple[dict[int, LastBeat], frozenset[int]]:
        beats = {rank: beat for rank in self._ranks_here if (beat := read_beat(self._folder, rank))}
        return beats, frozenset(rank for rank, beat in beats.items() if state(beat.pid) == "T")

    def _hangs_elsewhere(self) -> bool:
        return any(rank in self._ranks_here and rank != self._rank for rank in hanging(self._folder))

    def _leave_stacks(self) -> None:
        if not self._stacks_left:
            self._stacks_left = True
            with suppress(OSError):  # a full disk keeps no rank from its end
                leave_stacks(stacks_path(self._folder, self._rank), self._watched, self._pid)

    def _end(self, beat: LastBeat, seen_s: float, limit_s: float, stopped: frozenset[int]) -> None:
        self._stamp("hang", now_ns(), phase=beat.phase, limit_s=limit_s, beat=beat.event())
        stands = ", stopped by a signal" if self._rank in stopped else ""
        line = (
            f"switchyard: rank {self._rank} has been in {beat.phase} of step {beat.step} for {seen_s:.0f} s "
            f"(limit {limit_s:g} s){stands}: stacks in {stacks_path(self._folder, self._rank)}; killing it\n"
        )
        with suppress(OSError):  # a file on a full disk, perhaps
            os.write(sys.stderr.fileno(), line.encode())  # one write, and no line of another rank's in it
        if not self._watched.ended(OTHERS_STACKS_S):
            self._watched.signal(signal.SIGKILL)  # takes one that is stopped, too

    def _stamp(self, event: str, at_ns: int, **fields: Any) -> None:
        with suppress(OSError):  # a full disk keeps no rank alive that hangs
            pen = Ledger(watch_path(self._folder, self._rank))  # made when there is something to say, see stamps.py
            pen.write(event, sync=True, t=at_ns, **fields)
            pen.close()


def main(pid: str, rank: str, here: str, limits: str, folder: str) -> None:
    """Watch the process that started this one."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a cluster signals every process of a job
        signal.signal(number, signal.SIG_IGN)
    first, stop = here.split(":")
    ranks_here = range(int(first), int(stop))
    Watcher(Watched(int(pid)), int(pid), int(rank), ranks_here, Limits.parse(limits), Path(folder)).watch()


if __name__ == "__main__":
    main(*sys.argv[1:])
