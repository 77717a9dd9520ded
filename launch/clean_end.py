"""Commands that start processes, and must not leave them behind."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_cleanly() -> Iterator[None]:
    """A SIGTERM, or a SIGHUP of a terminal that is gone, inside the block goes by way of the clean-up of ranks and
    folders. Where SIGHUP is ignored (nohup) it stays so."""
    caught = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
