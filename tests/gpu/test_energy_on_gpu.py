"""The energy counter of the GPU that a rank uses, while it works."""

import os
import subprocess
import sys
import time

import pynvml
import pytest
import torch

from train.metrics.energy import EnergyMeter, energy_row

pytestmark = pytest.mark.gpu


def open_or_skip(index: int) -> EnergyMeter:
    meter = EnergyMeter.open(torch.device("cuda", index))
    if meter is None:
        pytest.skip("this device has no energy counter")
    return meter


def work(seconds: float, index: int = 0) -> float:
    """Keep the device busy; how long it was, s."""
    a = torch.randn(4096, 4096, device=torch.device("cuda", index), dtype=torch.bfloat16)
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize(index)
    return time.perf_counter() - begin


def test_a_busy_second_has_a_gpus_power() -> None:
    meter = open_or_skip(0)
    work(0.5)  # to a boundary of the counter's own updates
    meter.joules_since_last()
    seconds = work(1.0)
    joules = meter.joules_since_last()
    assert joules > 0
    assert 20 < energy_row([joules], seconds, tokens=1000)["power/watts"] < 1500


def test_paused_work_is_left_out() -> None:
    meter = open_or_skip(0)
    with meter.paused():
        work(2.0)
    between = meter.joules_since_last()
    work(2.0)
    assert between < meter.joules_since_last() / 2


LAST_OF_THE_VISIBLE = """
import sys, pynvml, torch
from train.metrics.energy import EnergyMeter
pynvml.nvmlInit()
asked = []
read = pynvml.nvmlDeviceGetTotalEnergyConsumption
def ask(handle):
    asked.append(pynvml.nvmlDeviceGetUUID(handle))
    return read(handle)
pynvml.nvmlDeviceGetTotalEnergyConsumption = ask
EnergyMeter.open(torch.device("cuda", 0)).joules_since_last()
print(*sorted({a.decode() if isinstance(a, bytes) else a for a in asked}))
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_counter_is_that_of_the_visible_device() -> None:
    """torch's device 0 is the machine's device 1, where CUDA_VISIBLE_DEVICES says so."""
    open_or_skip(0)
    pynvml.nvmlInit()
    second = f"GPU-{torch.cuda.get_device_properties(1).uuid}"
    visible = {**os.environ, "CUDA_VISIBLE_DEVICES": second}
    done = subprocess.run(
        [sys.executable, "-c", LAST_OF_THE_VISIBLE], env=visible, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [second]
