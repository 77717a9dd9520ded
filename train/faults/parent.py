"""Ranks that die with the torchrun that started them: it gives each a session of its own, and where it is killed
nothing else would end them."""

import ctypes
import os
import signal

LAUNCHED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""The variable that says so. Another launcher may start ranks from a thread, with whose end the kernel kills them."""
PR_SET_PDEATHSIG = 1
INIT = 1


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it is gone. Where it is gone already, exit."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        return  # another kernel's, or forbidden: as without it
    if os.getppid() != parent or (parent == INIT and not _is_python(INIT)):
        os._exit(128 + signal.SIGKILL)


def _is_python(pid: int) -> bool:
    """Whether it could be a torchrun: in a container that may well be process 1, which adopts orphans elsewhere."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(("python", "pypy"))
    except OSError:  # another user's: it has not started us
        return False
