"""What the ranks' network can do at best: bus bandwidths, as nccl-tests counts them.

`torchrun … -m launch.bench.bus cuda FILE`; rank 0 writes FILE. A collective's bytes are weighted so that the figure is
that of the slowest link, whatever the number of ranks (nccl-tests, doc/PERFORMANCE.md).
"""

import sys
from pathlib import Path

import torch

from launch.bench.ceilings import fastest_seconds
from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.world import TIMEOUT, Launch, World, choose_device
from train.data.atomic_json import write_json

GPU_BYTES, CPU_BYTES = 64 * 2**20, 2**20
"""Of the whole tensor."""


def measure(world: World, comm: Communicator) -> dict[str, float]:
    """GB/s by collective. Called by all ranks together."""
    n = world.size
    n_elements = (GPU_BYTES if world.device.type == "cuda" else CPU_BYTES) // 4 // n * n
    whole = torch.randn(n_elements, device=world.device)
    share = whole[: n_elements // n].clone()
    even = [n_elements // n] * n
    group = torch.distributed.group.WORLD
    assert group is not None
    calls = {
        "all_reduce": (2, lambda: comm.all_reduce(whole, group, CommKind.control)),
        "all_gather": (1, lambda: comm.wait(comm.start_all_gather(share, group, CommKind.control))),
        "all_to_all": (1, lambda: comm.wait(comm.start_all_to_all(whole, even, even, group, CommKind.control))),
    }
    return {
        f"{name}_gbs": times * (n - 1) / n * 4 * n_elements / fastest_seconds(call, world.device) / 1e9
        for name, (times, call) in calls.items()
    }


def main(device: str, path: Path) -> None:
    """Measure, and let rank 0 write."""
    launch = Launch.from_environment()
    world = World.join(launch, choose_device(device, launch), launch.open_store(TIMEOUT))
    measured = measure(world, Communicator())
    if world.rank == 0:
        write_json(path, measured)
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
