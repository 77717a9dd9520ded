"""Copies of what this rank will write, in host memory, so that training may go on: all that holds it up.

The memory is taken once, pinned if the state is on a GPU, and filled again by every save; there is one save at a time.
torch's own stager pins each storage by itself, the whole of a stack of experts for each of them, and the stacks of
replicas that another rank writes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from models.initialise import Shard

BLOCK = 1 << 29
"""Bytes that are pinned at a time: torch's allocator rounds up to powers of two."""
ALIGNMENT = 4096


class Staging:
    """Host memory for one state."""

    def __init__(self) -> None:
        self._places: dict[str, Tensor] = {}
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    @torch.no_grad()
    def copy(self, state: Mapping[str, Shard], names: Iterable[str]) -> dict[str, Shard]:
        """The shards of `names` as they are now; good until the next call."""
        staged = {}
        devices: set[torch.device] = set()
        for name in names:
            source = state[name].local
            place = self._places.get(name)
            if place is None or place.shape != source.shape or place.dtype != source.dtype:
                place = self._places[name] = self._new(source)
            place.copy_(source, non_blocking=True)
            staged[name] = replace(state[name], local=place)
            devices.add(source.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        return staged

    def _new(self, like: Tensor) -> Tensor:
        """Contiguous memory for `like`, as a tensor with storage of its own: torch.save writes storages whole."""
        begin = -(-self._used // ALIGNMENT) * ALIGNMENT
        if begin + like.nbytes > len(self._block):
            size, begin = max(BLOCK, like.nbytes) if like.is_cuda else like.nbytes, 0
            self._block = torch.empty(size, dtype=torch.uint8, pin_memory=like.is_cuda)
        self._used = begin + like.nbytes
        own = torch.from_numpy(self._block.numpy()[begin : self._used])
        return own.view(like.dtype).view(like.shape)
