"""A part of torchrun's store that is this start's alone, and whether all ranks take the job, told on the way.

torchrun keeps one store over its restarts, and torch's process groups meet in it by the same names each time: a rank
that is early finds there the address of one that is dead, and waits for it. The count of restarts is no name for a
start either: every node's torchrun has its own.

    rank 0     sets `start` to a new token, waits for every rank's word under it, and sets `ready/TOKEN` to all words
               and to the first refusal among them
    rank r     reads `start`, leaves a word of its own under it, and goes on when `ready/TOKEN` holds that word
               the token was an earlier start's: `start` will change, and it does that again

Wrong words are refused by all ranks at once. But one node may lack the folder, the text or the GPU that the others
have: it comes all the same, with its line in its word, and is gone only when all have heard it. Ranks may be minutes
apart, where one node has more to read than another.
"""

import json
import time
import uuid
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError, DistStoreError, PrefixStore, Store

from models.config import ConfigError

FAREWELL = timedelta(seconds=10)
"""How long rank 0, with which the store may go, waits for all to have heard a refusal that it has told them."""


def own_store(store: Store, rank: int, world_size: int, timeout: timedelta, refusal: str = "") -> Store:
    """Called by all ranks of a start together; with its line by one that refuses the job.

    Raises:
        ConfigError: on every rank, if one refuses: the line of the first that does.
        DistStoreError: if one does not come within `timeout`.
    """
    if rank == 0:
        token, refused = _announce(store, world_size, refusal)
    else:
        token, refused = _answer(store, rank, world_size, timeout, refusal)
    if refused:
        raise ConfigError(refused)
    return PrefixStore(token, store)


def _answer(store: Store, rank: int, world_size: int, timeout: timedelta, refusal: str) -> tuple[str, str]:
    deadline = time.monotonic() + timeout.total_seconds()
    word, token = uuid.uuid4().hex, ""
    while time.monotonic() < deadline:
        if (now := store.get("start").decode()) != token:
            token = now
            store.set(f"word/{token}/{rank}", json.dumps([word, refusal]))
        if store.check([f"ready/{token}"]):
            words, refused = json.loads(store.get(f"ready/{token}"))
            if word in words:
                if refused:
                    store.set(f"heard/{token}/{rank}", "")
                return token, refused
        time.sleep(0.01 + world_size / 10_000)  # together they ask no more than some thousand times a second
    raise DistStoreError(f"not all of {world_size} ranks came within {timeout.total_seconds():.0f} s")


def _announce(store: Store, world_size: int, refusal: str) -> tuple[str, str]:
    token = uuid.uuid4().hex
    store.set("start", token)
    others = range(1, world_size)
    words = [json.loads(store.get(f"word/{token}/{other}")) for other in others]
    refused = next((line for line in (refusal, *(line for _, line in words)) if line), "")
    store.set(f"ready/{token}", json.dumps([[word for word, _ in words], refused]))
    if refused and words:
        with suppress(DistError):  # one that was ended meanwhile
            store.wait([f"heard/{token}/{other}" for other in others], FAREWELL)
    return token, refused
