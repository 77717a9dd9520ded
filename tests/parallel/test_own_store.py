"""Ranks that start again find each other, and none of those that were before them in the same store."""

import threading
import uuid
from datetime import timedelta

import pytest
from torch.distributed import DistError, HashStore, Store

from parallel.own_store import own_store


def start(store: Store, ranks: list[int], timeout_s: float = 10.0) -> dict[int, str]:
    """What rank 0 of these `ranks` of three had to say, or the error, by who heard it."""
    heard: dict[int, str] = {}

    def run(rank: int) -> None:
        try:
            own = own_store(store, rank, 3, timedelta(seconds=timeout_s))
            if rank == 0:
                own.set("address", f"of start {uuid.uuid4()}")
            heard[rank] = own.get("address").decode()
        except DistError as error:
            heard[rank] = type(error).__name__

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]], ids=str)
def test_a_later_start_hears_only_its_own(order: list[int]) -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=10))
    heard = [start(store, order) for _ in range(3)]
    for one in heard:
        assert one[0] == one[1] == one[2]
    assert len({one[0] for one in heard}) == 3


def test_one_that_died_before_it_came_is_no_trouble_for_the_next_start() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=1))
    assert start(store, [1, 0], timeout_s=1) == {0: "DistStoreError", 1: "DistStoreError"}
    assert start(store, [2, 1], timeout_s=1) == {2: "DistStoreError", 1: "DistStoreError"}  # of rank 0's old token
    heard = start(store, [0, 1, 2])
    assert heard[0] == heard[1] == heard[2] != "DistStoreError"
