"""A toy step on two gloo ranks, with the ranges that the clock and the Communicator open, under the Tracer."""

import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import record_function

from parallel.comm import Communicator, Pending
from parallel.comm_kind import CommKind
from train.trace.tracer import Tracer


def traced_step(folder: str) -> None:
    """Trace step 1 of two into `folder`: gradients hidden behind compute, experts' rows not, the next batch late."""
    comm, group = Communicator(), dist.group.WORLD
    assert group is not None
    tracer = Tracer(Path(folder), dist.get_rank(), torch.device("cpu"))

    def wait(pending: Pending, place: str) -> None:
        with record_function(f"wait/{pending.kind.value}/{place}"):
            comm.wait(pending)

    def step() -> None:
        with record_function("phase/data_wait"):
            time.sleep(0.002)
        with record_function("phase/compute_fwd"):
            with record_function("comm/ep/all_to_all"):
                rows = comm.start_all_to_all(torch.ones(2, 20_000), [1, 1], [1, 1], group, CommKind.ep)
            wait(rows, "dispatch")
        with record_function("phase/compute_bwd"):
            with record_function("comm/dp/reduce_scatter"):
                gradients = comm.start_reduce_scatter(torch.ones(200_000), group, CommKind.dp)
            time.sleep(0.05)
            wait(gradients, "gradients")
        with record_function("phase/compute_opt"):
            torch.ones(1000).add_(1)

    tracer.begin()
    step()
    comm.barrier()
    tracer.step()
    step()
    tracer.end(1)
