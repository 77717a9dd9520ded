"""A part of torchrun's store that is this start's alone.

torchrun keeps one store over its restarts, and torch's process groups meet in it by the same names each time: a rank
that is early finds there the address of one that is dead, and waits for it. The count of restarts is no name for a
start either: every node's torchrun has its own.

    rank 0     sets `start` to a new token, waits for every rank's word under it, and sets `ready/TOKEN` to all words
    rank r     reads `start`, leaves a word of its own under it, and goes on when `ready/TOKEN` holds that word
               the token was an earlier start's: `start` will change, and it does that again
"""

import time
import uuid
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, Store


def own_store(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """Called by all ranks of a start together.

    Raises:
        DistStoreError: if one does not come within `timeout`.
    """
    if rank == 0:
        return PrefixStore(_announce(store, world_size), store)
    deadline = time.monotonic() + timeout.total_seconds()
    word, token = uuid.uuid4().hex, ""
    while time.monotonic() < deadline:
        if (now := store.get("start").decode()) != token:
            token = now
            store.set(f"word/{token}/{rank}", word)
        if store.check([f"ready/{token}"]) and word in store.get(f"ready/{token}").decode():
            return PrefixStore(token, store)
        time.sleep(0.01 + world_size / 10_000)  # together they ask no more than some thousand times a second
    raise DistStoreError(f"not all of {world_size} ranks came within {timeout.total_seconds():.0f} s")


def _announce(store: Store, world_size: int) -> str:
    token = uuid.uuid4().hex
    store.set("start", token)
    words = [store.get(f"word/{token}/{rank}").decode() for rank in range(1, world_size)]
    store.set(f"ready/{token}", ",".join(words) or "alone")
    return token
