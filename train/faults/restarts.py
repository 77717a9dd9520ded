"""What ended in order stays ended, though torchrun starts ranks again after any exit code but 0.

    start 1 of torchrun A: attempt 1, fenced by torchrun B's attempt 2      start 2 of A: ends with the same code, 77;
                                                                             it would take attempt 3, and fence B
    attempt 3, preempted: a rank was told to end, and torchrun lives        its next start goes on

An attempt's `start` says whose it is (`agent`). Only rank 0 looks: what it is told in order, all are.
"""

import json
import os
from pathlib import Path
from typing import Any

from parallel.comm import Communicator
from train.failure import DIVERGED, JobEnds
from train.faults.parent import LAUNCHED_BY_TORCHRUN
from train.faults.stop import Cause
from train.faults.watch.stamps import read_events
from train.ledger.events import attempt_folder, attempts, boot_id, process_started_ns

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""The variable in which torchrun counts them."""
FINAL = {
    Cause.stopped.value: (Cause.stopped.code, "was stopped, and a restart by torchrun does not undo that"),
    Cause.fenced.value: (Cause.fenced.code, "was fenced: a newer start of this job has its folder"),
    "diverged": (DIVERGED, "diverged, and would again: change something, and start it anew"),
}
"""Ends after which torchrun's next start ends at once: the exit code, and what to say of the attempt."""


def agent() -> str | None:
    """The torchrun that started this process, as nothing else on any host is called; None without one."""
    pid = os.getppid()
    if LAUNCHED_BY_TORCHRUN not in os.environ or pid == 0:  # 0: outside this container
        return None
    return f"{boot_id()} {pid} {process_started_ns(pid)}"


def restarted() -> bool:
    """Whether this process's torchrun had started ranks before."""
    return os.environ.get(RESTARTS, "0") != "0"


def stay_ended(run_folder: Path, comm: Communicator, rank: int) -> None:
    """End if this torchrun's last attempt ended in order. All ranks call it together, before they take an attempt.

    Raises:
        JobEnds: on every rank, with the code of that end.
    """
    own = agent()
    if end := comm.broadcast_object(final_end(run_folder, own) if rank == 0 and own and restarted() else None):
        raise JobEnds(*end)


def final_end(run_folder: Path, own: str) -> tuple[str, int, str] | None:
    """The cause, exit code and line of the end of `own`'s last attempt; None if it had none, or may go on."""
    fenced = False
    for number in reversed(attempts(run_folder)):
        path = attempt_folder(run_folder, number) / "rank-00000.jsonl"
        start = _first_event(path)
        if start.get("agent") == own:
            cause = next((event["cause"] for event in read_events(path) if event["ev"] == "exit"), None)
            cause = Cause.fenced.value if fenced and cause not in FINAL else cause
            if cause not in FINAL:
                return None
            code, what = FINAL[cause]
            return cause, code, f"attempt {number} {what}"
        fenced |= "agent" in start
    return None


def _first_event(path: Path) -> dict[str, Any]:
    """Nothing, where none is written to its end yet."""
    try:
        with path.open() as file:
            return json.loads(file.readline())
    except (OSError, ValueError):
        return {}
