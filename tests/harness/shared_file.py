"""In place of parallel.torch_internals.SharedMemory, where there are no GPUs: a file in memory for each rank."""

import math
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class SharedFile:
    """Full of NaN at first, in whatever dtype."""

    def __init__(self, n_bytes: int, device: torch.device, group: ProcessGroup) -> None:
        with tempfile.NamedTemporaryFile(delete=False) as file:
            pass
        names: list[str] = [""] * group.size()
        dist.all_gather_object(names, file.name, group=group)
        self._group = group
        self._of = [torch.from_file(name, True, n_bytes, dtype=torch.uint8) for name in names]
        self.mine = self._of[group.rank()].fill_(255)
        self.meet(timedelta())
        Path(file.name).unlink()

    def of(self, rank: int, shape: Sequence[int], dtype: torch.dtype, n_bytes_before: int = 0) -> Tensor:
        """See SharedMemory."""
        n_bytes = math.prod(shape) * dtype.itemsize
        return self._of[rank][n_bytes_before : n_bytes_before + n_bytes].view(dtype).view(*shape).data

    def meet(self, patience: timedelta) -> None:
        """See SharedMemory."""
        dist.barrier(group=self._group)
