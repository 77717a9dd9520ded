"""A number that the device has yet to compute, on its way to the host behind it: only who reads it waits."""

import torch
from torch import Tensor


class LateNumber:
    """See above; on CPU it is here already."""

    def __init__(self, number: Tensor) -> None:
        """`number`: a scalar that nobody changes."""
        self._on_host, self._arrived = number, None
        if number.is_cuda:
            self._on_host = torch.empty_like(number, device="cpu", pin_memory=True)
            self._on_host.copy_(number, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> float:
        """It. Waits for the device to have passed what computed it, and for nothing after that."""
        if self._arrived:
            self._arrived.synchronize()
        return self._on_host.item()
