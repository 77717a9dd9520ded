"""The prefetch thread: ahead but never further, errors in their place, gone when closed."""

import threading
import time
from itertools import count

import pytest

from train.data.prefetch import Prefetcher


def test_items_come_in_order_and_no_further_ahead_than_depth() -> None:
    made = count()
    seen: list[int] = []

    def make() -> int:
        seen.append(next(made))
        return seen[-1]

    prefetcher = Prefetcher(make, depth=3)
    assert [prefetcher.get() for _ in range(10)] == list(range(10))
    deadline = time.monotonic() + 2
    while len(seen) < 14 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(seen) == 10 + 3 + 1  # taken, waiting in the queue, and one in hand
    prefetcher.close()


def test_error_comes_after_the_items_before_it_and_stays() -> None:
    made = iter([0, 1])

    def make() -> int:
        for item in made:
            return item
        raise FileNotFoundError("shard 2")

    prefetcher = Prefetcher(make, depth=2)
    assert [prefetcher.get(), prefetcher.get()] == [0, 1]
    for _ in range(3):
        with pytest.raises(FileNotFoundError, match="shard 2"):
            prefetcher.get()
    prefetcher.close()


@pytest.mark.parametrize("depth", [1, 4])
def test_close_stops_the_thread_though_its_queue_is_full(depth: int) -> None:
    for _ in range(50):  # the timing of flag, drain and put differs each time
        before = set(threading.enumerate())
        prefetcher = Prefetcher(lambda: 0, depth)
        (thread,) = set(threading.enumerate()) - before
        closer = threading.Thread(target=prefetcher.close, daemon=True)
        closer.start()
        closer.join(timeout=5)
        assert not closer.is_alive()
        assert not thread.is_alive()
        prefetcher.close()  # again does no harm
        with pytest.raises(RuntimeError, match="closed"):
            prefetcher.get()


def test_refuses_an_empty_queue() -> None:
    with pytest.raises(ValueError, match="depth of 0"):
        Prefetcher(lambda: 0, depth=0)
