"""Ranks that ask each other whether they take the job, before they meet in a process group."""

import threading
from datetime import timedelta

from torch.distributed import HashStore, Store

from models.config import ConfigError
from parallel.acceptance import wait_for_acceptance


def verdicts(store: Store, n_ranks: int, taking: int) -> list[str]:
    """What `taking` ranks of `n_ranks` hear, once they do."""
    heard: list[str] = []

    def take() -> None:
        try:
            wait_for_acceptance(store, n_ranks)
            heard.append("")
        except ConfigError as error:
            heard.append(str(error))

    ranks = [threading.Thread(target=take) for _ in range(taking)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return heard


def test_all_wait_for_all() -> None:
    assert verdicts(fresh(), 3, taking=3) == ["", "", ""]


def test_one_that_refuses_is_heard_by_all() -> None:
    store = fresh()
    store.set("verdict", "on a node: train.steps=0")
    assert verdicts(store, 3, taking=2) == ["on a node: train.steps=0"] * 2


def fresh() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(seconds=10))
    return store
