"""A program whose ranks end with it, in whatever way it is ended."""

import subprocess
from collections.abc import Mapping, Sequence

PATIENCE_S = 45.0
"""For torchrun to end its ranks: it gives them 30 s."""


def run_to_end(command: Sequence[str], environment: Mapping[str, str], output: int, timeout_s: float | None) -> int:
    """The exit code of `command`, which writes to the file descriptor `output`.

    It has a session of its own, so that a Ctrl-C reaches us alone: two would kill torchrun before it has ended its
    ranks, and so would a plain kill.

    Raises:
        subprocess.TimeoutExpired: after `timeout_s` seconds, once it and its ranks are ended; None: never.
    """
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return process.wait(timeout_s)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
