"""How a rank ends, above all when it cannot go on: one message, on the right rank, and an exit code of its kind.

torchrun stops the job when one rank exits, and closes with the message of the rank whose record bears the earliest
time. Two things would spoil that. A refused configuration fails on all ranks at once: only one of them may speak. And a
rank that dies takes its peers' collectives down within milliseconds: a peer must wait to be killed, not report that.
"""

import json
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from models.config import ConfigError
from parallel.world import Launch, is_peer_failure

REFUSED = 2
FAILED = 1
DIVERGED = 3
INTERRUPTED = 130
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""The variable in which torchrun says where it looks for a rank's last words."""
GRACE_S = 20.0
"""How long a rank that should not speak waits for torchrun to end it; it does within a second or two."""


class JobEnds(SystemExit):
    """All ranks end the job, at the same point and for one reason."""

    def __init__(self, cause: str, code: int, line: str) -> None:
        """`cause`: the ledger's word for it; `code`: what the process exits with; `line`: for the user."""
        super().__init__(code)
        self.cause, self.exit_code, self.line = cause, code, line

    def __str__(self) -> str:
        """The line."""
        return self.line


def refuse(error: ConfigError, launch: Launch) -> NoReturn:
    """Exit with code 2 and the error's one line: printed by rank 0, recorded once per machine for torchrun."""
    line = f"switchyard: {error}"
    if launch.local_rank != 0:
        time.sleep(GRACE_S)
        # Still here, so nobody else was refused: the others wait for this rank, and it must speak after all.
    if launch.rank == 0 or launch.local_rank != 0:
        print(line, file=sys.stderr, flush=True)
    _record_line(line)
    # No clean-up: a process group that lacks a peer does not end by itself.
    exit_at_once(REFUSED)


def end_together(line: str, code: int, launch: Launch) -> NoReturn:
    """Exit with `code` where all ranks do, and none is waited for any more; `line` is printed by rank 0, and recorded
    for torchrun."""
    if launch.rank == 0:
        print(f"switchyard: {line}", file=sys.stderr, flush=True)
    _record_line(f"switchyard: {line}")
    exit_at_once(code)


def fail(error: BaseException, launch: Launch) -> NoReturn:
    """Exit with code 1 and the traceback; a rank whose peer failed first leaves the word to that one."""
    what = "failed"
    if launch.launched and is_peer_failure(error):
        time.sleep(GRACE_S)
        if launch.world_size > launch.local_world_size:  # still here: our torchrun has none to end us for
            what = "lost its peers: a rank on another node went away, see that node's output; it was waiting in:"
    trace = "".join(traceback.format_exception(error))
    print(f"switchyard: rank {launch.rank} {what}\n{trace}", file=sys.stderr, flush=True)
    if ERROR_FILE in os.environ:
        get_error_handler().record_exception(error)
    exit_at_once(FAILED)


def _record_line(line: str) -> None:
    """Leave `line` for torchrun's summary, which prints the call stack of a record: for a refusal there is none."""
    if ERROR_FILE in os.environ:
        extra = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with suppress(OSError):  # a full disk is no reason for a traceback
            Path(os.environ[ERROR_FILE]).write_text(json.dumps({"message": {"message": line, "extraInfo": extra}}))


def exit_at_once(code: int) -> NoReturn:
    """End this process without the interpreter's own end, in which a thread of a library may still abort it: a job that
    was trained and saved would then be one that failed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
