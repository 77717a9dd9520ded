"""The peak that MFU divides by: the right product's, or a measured one."""

import time

import pytest
import torch

from train.metrics.peak import datasheet_tflops, peak_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA L40S", 362.0),
    ],
)
def test_known_gpus(name: str, tflops: float) -> None:
    assert datasheet_tflops(name, torch.bfloat16) == tflops
    assert datasheet_tflops(name, torch.float32) is None


@pytest.mark.parametrize("name", ["NVIDIA H100", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GeForce RTX 5090", ""])
def test_an_unknown_gpu_is_taken_for_no_other(name: str) -> None:
    assert datasheet_tflops(name, torch.bfloat16) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_on_a_cpu_it_is_measured(dtype: torch.dtype) -> None:
    random_state = torch.get_rng_state()
    start = time.monotonic()
    peak = peak_flops(torch.device("cpu"), dtype)
    assert time.monotonic() - start < 5.0  # about 0.3 s on an idle host
    assert 1e-4 < peak.tflops < 1e3
    assert peak.source.startswith("measured GEMM ")
    assert peak.source.endswith("³ " + str(dtype).removeprefix("torch."))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_unknown_gpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA Something New")
    monkeypatch.setattr("train.metrics.peak._gemm_seconds", lambda size, *_, **__: 1e-3 * (size / 1024) ** 3)
    peak = peak_flops(torch.device("cuda", 0), torch.bfloat16)
    assert (peak.tflops, peak.source) == (pytest.approx(2 * 1024**3 / 1e-3 / 1e12), "measured GEMM 2048³ bfloat16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_has_a_peak() -> None:
    assert peak_flops(torch.device("cuda"), torch.bfloat16).tflops > 1.0
