"""A communicator with a group of its own does not meet what others say in the world's."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from harness.worker_pool import WorkerPool

from parallel.comm import Communicator


def reduced(comm: Communicator) -> list[float]:
    tensor = torch.tensor([float(comm.rank + 1)])
    comm.all_reduce_on_host({None: tensor}, dist.ReduceOp.SUM)
    return tensor.tolist()


SAID: dict[str, tuple[Callable[[Communicator], object], list[object]]] = {
    "broadcast_object": (lambda comm: comm.broadcast_object(comm.rank), [0, 0]),
    "all_gather_object": (lambda comm: comm.all_gather_object(comm.rank), [[0, 1], [0, 1]]),
    "gather_object": (lambda comm: comm.gather_object(comm.rank), [[0, 1], []]),
    "scatter_object": (lambda comm: comm.scatter_object(["a", "b"] if comm.rank == 0 else []), ["a", "b"]),
    "all_gather_numbers": (lambda comm: comm.all_gather_numbers({"rank": comm.rank}), [{"rank": [0.0, 1.0]}] * 2),
    "all_reduce_on_host": (reduced, [[3.0], [3.0]]),
    "barrier": (lambda comm: comm.barrier(), [None, None]),
}


def beside_the_world(name: str) -> tuple[object, list[float]]:
    """One call, which rank 0 makes after its part in a collective of the world's, and rank 1 before."""
    comm = Communicator(everyone=dist.new_group(backend="gloo"))
    worlds = torch.full((5,), float(comm.rank))
    work = dist.all_reduce(worlds, async_op=True) if comm.rank == 0 else None
    said = SAID[name][0](comm)
    work = work or dist.all_reduce(worlds, async_op=True)
    work.wait()
    return said, worlds.tolist()


@pytest.mark.parametrize("name", SAID)
def test_all_that_is_exchanged_on_the_host(name: str, pool: WorkerPool) -> None:
    told = pool.run(2, beside_the_world, name, timeout=20)
    assert told == [(said, [1.0] * 5) for said in SAID[name][1]]
