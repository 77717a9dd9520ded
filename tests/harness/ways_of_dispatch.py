"""`torchrun … -m harness.ways_of_dispatch`: all ways of benchmarks/dispatch.py on CPUs, their kernels interpreted; what
GPUs share is a file in memory."""

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import dispatch
import dispatch_ways


class SharedFile:
    """In place of dispatch_ways.Shared."""

    def __init__(self, shape: Sequence[int], like: Tensor, group: ProcessGroup) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            pass
        names: list[str] = [""] * group.size()
        dist.all_gather_object(names, file.name)
        n_elements = math.prod(shape)
        self.of = [torch.from_file(name, True, n_elements, dtype=like.dtype).view(*shape) for name in names]
        self.mine = self.of[group.rank()].fill_(math.nan)
        self.meet()
        Path(file.name).unlink()

    def meet(self) -> None:
        """Every rank is here."""
        dist.barrier()


if __name__ == "__main__":
    dispatch_ways.Shared = SharedFile  # type: ignore[misc,assignment]
    dispatch.main("cpu", 40, 64)
