"""overlap.forward_backward on two GPUs: exchanges on a stream of their own read and write what they should."""

import json
import os
from typing import Any

import pytest
import torch
from gpu.side_by_side_on_gpus import AT, LAYOUTS, STEPS
from harness.torchrun import REPOSITORY, torchrun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


def losses(told: list[dict[str, Any]], layout: str, precision: str, on: bool) -> list[float]:
    (found,) = [
        row["losses"]
        for row in told
        if "losses" in row and (row["layout"], row["precision"], row["on"]) == (layout, precision, on)
    ]
    assert len(found) == STEPS
    return list(found)


def test_losses_are_those_without_it_and_memory_does_not_grow() -> None:
    """One job for all of it, in which all that the allocator has free is spoilt: see gpu/side_by_side_on_gpus.py."""
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])))
    done = torchrun(2, module="gpu.side_by_side_on_gpus", env={"PYTHONPATH": path}, timeout=540)
    assert done.returncode == 0, done.stderr[-4000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for layout in LAYOUTS:
        exact, expected = (losses(told, layout, "fp64", on) for on in (True, False))
        assert exact == pytest.approx(expected, abs=1e-9), layout
        rough = losses(told, layout, "bf16", True)
        first = losses(told, layout, "bf16", False)[0]
        assert rough[0] == pytest.approx(first, abs=1e-6), f"{layout}: no weight has moved yet"
        assert rough == pytest.approx(expected, abs=5e-2), layout
    (memory,) = [row["memory"] for row in told if "memory" in row]
    assert len(memory) == len(AT)
    allocated, reserved, peak = zip(*memory, strict=True)
    assert max(allocated) - min(allocated) < 2**20, "nothing but logs may be alive between steps"
    assert reserved[-1] == reserved[1]
    assert peak[-1] < 1.05 * peak[0], "routing differs from step to step, and no more"
