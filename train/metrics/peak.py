"""The arithmetic peak of a device: what MFU divides by."""

import time
from dataclasses import dataclass

import torch

# Dense bf16 and fp16 TFLOP/s by the exact name that the driver reports, from NVIDIA's data sheets; where those give the
# figure "with sparsity" it is halved. Exact, because a near miss is another product: the PCIe card of a name is slower
# than its SXM module, and a slice of a partitioned GPU bears the whole one's name as its prefix.
_DATASHEET_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,  # A100 data sheet
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA L40S": 362.0,  # L40S data sheet: 362.05 dense
    "NVIDIA H100 PCIe": 756.0,  # H100 data sheet: 1513 sparse
    "NVIDIA H100 80GB HBM3": 989.0,  # H100 data sheet, SXM: 1979 sparse
    "NVIDIA H200": 989.0,  # H200 data sheet, SXM: 1979 sparse
    "NVIDIA B200": 2250.0,  # HGX B200: 36 PFLOP/s sparse over 8 GPUs
    "NVIDIA B300 SXM6 AC": 2250.0,  # HGX B300: 36 PFLOP/s sparse over 8 GPUs
    "NVIDIA GB200": 2500.0,  # GB200 NVL72: 360 PFLOP/s sparse over 72 GPUs
    "NVIDIA GB300": 2500.0,  # GB300 NVL72: 360 PFLOP/s sparse over 72 GPUs
}


@dataclass(frozen=True)
class Peak:
    """The arithmetic peak of one device, and where the number is from."""

    tflops: float
    """TFLOP/s, a multiply-add counted as two."""

    source: str
    """As reports show it: "data sheet NVIDIA H200" or "measured GEMM 1024³ float32"."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> Peak:
    """The data sheet's dense peak where the device is known and `dtype` is a 16-bit one, else a measured matmul.

    A device that is not in the list is measured, never taken for another. A measurement takes about 0.3 s and leaves
    the global random state alone. It uses the threads and matmul precision that are set when it is called, and a busy
    host lowers it: call it once, where training would run.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (tflops := datasheet_tflops(name, dtype)) is not None:
            return Peak(tflops, f"data sheet {name}")
    return _measured(device, dtype)


def datasheet_tflops(name: str, dtype: torch.dtype) -> float | None:
    """Dense TFLOP/s of the GPU of exactly this name; None for an unknown one, and unless `dtype` is bf16 or fp16."""
    return _DATASHEET_TFLOPS.get(name) if dtype in (torch.bfloat16, torch.float16) else None


def _measured(device: torch.device, dtype: torch.dtype) -> Peak:
    """The fastest of ten square matmuls, of the first size, doubling from 128, that takes 4 ms (so none takes over 40).

    The fastest, since a peak is what a device can do: the median of a bad moment on a shared host gave MFUs over 100 %.
    """
    size = 128
    while _gemm_seconds(size, device, dtype, repeats=1) < 4e-3 and size < 8192:
        size *= 2
    seconds = _gemm_seconds(size, device, dtype, repeats=10)
    return Peak(2 * size**3 / seconds / 1e12, f"measured GEMM {size}³ {str(dtype).removeprefix('torch.')}")


@torch.no_grad()
def _gemm_seconds(size: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    # A generator of its own: a draw from the global one would change the run that follows.
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, generator=generator, device=device, dtype=dtype)
    b = torch.randn(size, size, generator=generator, device=device, dtype=dtype)
    seconds = []
    for _ in range(1 + repeats):
        _synchronize(device)
        start = time.perf_counter()
        a @ b
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])  # the first one warms up


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
