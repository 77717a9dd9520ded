"""What a command that starts ranks leaves behind, and waiting until it is so."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil


def ranks_in(folder: Path) -> list[int]:
    """Processes whose command line names `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def wait_for(so: Callable[[], bool], seconds: float = 90.0) -> None:
    """Patience, of which nothing is measured."""
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, f"not so in {seconds:g} s"
        time.sleep(0.1)
