"""Make items ahead of their use, in one background thread."""

from collections.abc import Callable
from queue import Empty, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """What `make` returns, call after call, with up to `depth` items ready.

    If `make` raises, `get` raises it too: after the items made before, and from then on at every call.
    Close it, or the thread lives until the process ends.
    """

    def __init__(self, make: Callable[[], Item], depth: int) -> None:
        """Start at once to fill a queue of `depth` >= 1 items. Raises ValueError for a smaller depth."""
        if depth < 1:
            raise ValueError(f"a prefetch depth of {depth} holds nothing")
        self._make = make
        self._ready: Queue[Item | BaseException] = Queue(depth)
        self._stop = Event()
        self._thread = Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def get(self) -> Item:
        """The next item, waited for if it is not ready. Raises what `make` raised; RuntimeError if closed."""
        if self._stop.is_set():
            raise RuntimeError("the prefetcher is closed")
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # the thread is gone: a later call must fail again, not wait for ever
            raise item
        return item

    def close(self) -> None:
        """Stop the thread and wait for it; an item half made is finished first. May be called again."""
        self._stop.set()
        # The thread may be waiting on a full queue. It puts at most one more item once the flag is up, so a queue
        # emptied after that has room for it, whatever the timing.
        try:
            while True:
                self._ready.get_nowait()
        except Empty:
            self._thread.join()

    def _fill(self) -> None:
        try:
            while not self._stop.is_set():
                self._ready.put(self._make())
        except BaseException as error:  # whatever it is belongs to the consumer, who would else wait for ever
            self._ready.put(error)
