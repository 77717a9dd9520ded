"""strategy.dispatcher=symmetric_memory: all_gather's numbers over NVLink, and the host waits for nothing."""

import json
import os

import pytest
import torch
from harness.torchrun import REPOSITORY, torchrun

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LOSSES = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 5e-2}
GRADIENTS = {"fp64": 1e-12, "fp32": 1e-4, "bf16": 5e-2}
"""Of the first step, beside the largest. NCCL adds bfloat16s of four ranks with three roundings, this with one."""


def test_kernels_are_torchs_operators() -> None:
    from harness.kernels_beside_peer_rows import main  # Triton comes with torch for CUDA alone

    main("cuda")


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_it_is_all_gather(n_ranks: int) -> None:
    """One job for all layouts, in which all that the allocator has free is NaN: gpu/taken_beside_gathered_on_gpus.py"""
    if torch.cuda.device_count() < n_ranks:
        pytest.skip(f"needs {n_ranks} CUDA devices")
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])))
    module = "gpu.taken_beside_gathered_on_gpus"
    done = torchrun(n_ranks, module=module, env={"PYTHONPATH": path}, timeout=540)
    assert done.returncode == 0, done.stderr[-4000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 3 * (3 if n_ranks == 2 else 5)
    for row in told:
        print(row)
        precision = row["layout"].split()[1]
        assert row["losses_off"] < LOSSES[precision], row
        assert row["gradients_off"] < GRADIENTS[precision], row
        assert row["as_predicted"], row
        if precision == "bf16":  # rows=static; stages of a pipeline wait for each other's shapes
            assert row["waits"][1] == 0 or row["layout"].startswith("pp"), row
