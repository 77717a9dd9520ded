"""Ranks that ask each other whether they take the job, before they meet in a process group."""

import os
import platform
import socket
import threading
import time
from datetime import timedelta

import pytest
from harness.worker_pool import WorkerPool
from torch.distributed import HashStore, Store

from models.config import ConfigError
from parallel.acceptance import tell_refusal
from parallel.own_store import own_store
from parallel.world import TIMEOUT, Launch

LATER_THAN_ONE_MACHINE_WAITS_S = 11


def told(store: Store, refusals: list[str], late_s: dict[int, float] | None = None) -> list[str]:
    """What each rank hears, some of them late."""
    heard = [""] * len(refusals)

    def come(rank: int) -> None:
        time.sleep((late_s or {}).get(rank, 0))
        try:
            own_store(store, rank, len(refusals), timedelta(seconds=20), refusals[rank])
        except ConfigError as error:
            heard[rank] = str(error)

    ranks = [threading.Thread(target=come, args=(rank,)) for rank in range(len(refusals))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return heard


def fresh() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    return store


def test_all_take_it() -> None:
    assert told(fresh(), ["", "", ""]) == ["", "", ""]


@pytest.mark.parametrize("refuser", [0, 2])
@pytest.mark.parametrize("late", [0, 1, 2])
def test_one_that_refuses_is_heard_by_all(refuser: int, late: int) -> None:
    refusals = ["", "", ""]
    refusals[refuser] = "on a node: no text"
    assert told(fresh(), refusals, {late: 0.5}) == ["on a node: no text"] * 3


def test_all_that_refuse_hear_the_first() -> None:
    assert told(fresh(), ["one", "two", "three"]) == ["one"] * 3


def test_a_refusal_is_of_its_start_alone() -> None:
    store = fresh()
    assert told(store, ["", "no text", ""]) == ["no text"] * 3
    for late in range(3):
        assert told(store, ["", "", ""], {late: 0.2}) == [""] * 3


def start_apart(refuser: int, port: int) -> str:
    """Two nodes of one rank each; the one that takes the job has more to read before it can."""
    rank = int(os.environ["RANK"])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launch = Launch(rank, world_size=2, local_rank=0, local_world_size=1, launched=True)
    if rank == refuser:
        tell_refusal(launch, ConfigError("no text here"))
        return ""
    time.sleep(LATER_THAN_ONE_MACHINE_WAITS_S)
    try:
        launch.open_store(TIMEOUT)
    except ConfigError as error:
        return str(error)
    return "took it"


@pytest.mark.parametrize("refuser", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_however_far_apart_nodes_are(refuser: int, pool: WorkerPool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    heard = pool.run(2, start_apart, refuser, port, timeout=40)
    assert heard[1 - refuser] == f"on {platform.node()}: no text here"
