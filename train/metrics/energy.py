"""What the GPUs draw: their own counters of energy (NVML), and the power/* of a row of metrics.

The counter is the driver's, of the whole board, in mJ since the driver was loaded; NVIDIA has had it since Volta. It is
summed up by the device itself, so that a difference over a window is that window's energy, with no sampling of ours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import pynvml
import torch

Reader = Callable[[], int | None]
"""A counter of energy, mJ; None where it cannot be read now."""


class EnergyMeter:
    """Energy of one device between two calls; what evaluations and saves take is left out where the stopwatch leaves
    out their time (`paused`, as Throughput's)."""

    def __init__(self, read_mj: Reader) -> None:
        self._read_mj = read_mj
        self._last_mj = read_mj()
        self._joules = 0.0

    @classmethod
    def open(cls, device: torch.device) -> Self | None:
        """The meter of this rank's device; None where it is no GPU, or NVML or its counter is not to be had."""
        if device.type != "cuda":
            return None
        # By UUID: NVML numbers all the machine's devices, torch those that CUDA_VISIBLE_DEVICES leaves, in its order.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            return None

        def read_mj() -> int | None:
            try:
                return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except pynvml.NVMLError:  # a metric is no reason to end a job
                return None

        return cls(read_mj)

    def joules_since_last(self) -> float:
        """Energy since the last call, or since the meter was opened, less what was paused, J. NaN if the counter could
        not be read at an end of it."""
        joules, self._joules = self._joules + self._advance(), 0.0
        return joules

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave this energy out."""
        self._joules += self._advance()
        try:
            yield
        finally:
            self._advance()

    def _advance(self) -> float:
        """From the last look at the counter to this one, J."""
        before, self._last_mj = self._last_mj, self._read_mj()
        if before is None or self._last_mj is None:
            return math.nan
        # A counter that went back was begun anew, by another load of the driver: what it shows was used since.
        used_mj = self._last_mj - before if self._last_mj >= before else self._last_mj
        return used_mj / 1e3


def energy_row(joules_of_all_ranks: Sequence[float], window_s: float, tokens: int) -> dict[str, float]:
    """power/* of a window of `window_s` seconds in which all ranks together trained on `tokens`: `watts` is the mean
    power of all their GPUs together.

    Empty if a rank has no counter (NaN), for there is no sum then; and if none has moved yet: drivers bring them up to
    date some ten times a second.
    """
    joules = math.fsum(joules_of_all_ranks)
    if not joules > 0:  # NaN is not
        return {}
    return {"power/watts": joules / window_s, "power/tokens_per_joule": tokens / joules}
