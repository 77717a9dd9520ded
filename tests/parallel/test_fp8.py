"""precision.matmul=fp8 in layouts: what is rounded to float8 is a token's own, so every layout rounds the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from harness.layout_run import (
    DDP,
    FP64,
    FSDP,
    MODEL_MLA_SOFTMAX,
    SINGLE,
    ZERO1,
    Layout,
    merged,
    merged_gradients,
    run_layout,
)
from harness.worker_pool import WorkerPool

from models.config import ConfigError
from parallel.check_fp8 import check_fp8_device
from parallel.config import Dtype, Matmul, OverlapConfig, PrecisionConfig, Recompute, StrategyConfig

# Every sum but the float8 values themselves in float64: a layout that rounded anything else to float8, or from
# something else, would be off by parts in a hundred.
FP8_IN_FLOAT64 = replace(FP64, matmul=Matmul.fp8)
FP8 = PrecisionConfig("fp8", Dtype.float32, Dtype.bfloat16, Dtype.float32, Matmul.fp8)
MLA = replace(
    MODEL_MLA_SOFTMAX,
    attention=replace(MODEL_MLA_SOFTMAX.attention, q_lora_rank=16, qk_nope_dim=16, qk_rope_dim=16),
)
CASES = {
    "ddp_accumulation": Layout(DDP, micro_batch_size=1),
    "zero1_mla": Layout(ZERO1, model=MLA),
    "fsdp_recompute": Layout(replace(FSDP, recompute=Recompute.selective)),
    "ep": Layout(replace(DDP, ep=2)),
    "pp": Layout(StrategyConfig("pp", pp=2)),
    "ep_side_by_side": Layout(replace(DDP, ep=2), OverlapConfig(forward_backward=True), micro_batch_size=1),
    "zero1_compiled": Layout(replace(ZERO1, compile=True)),
    "ddp_compiled_recompute": Layout(replace(DDP, compile=True, recompute=Recompute.full)),
}


IN_SOAK = {
    "zero1_compiled",
    "ddp_compiled_recompute",
}  # a minute of compilers; one graph a part: tests/models/test_fp8_linear.py


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] if name in IN_SOAK else []) for name in CASES]
)
def test_two_ranks_round_as_one_does(name: str, pool: WorkerPool) -> None:
    layout = replace(CASES[name], precision=FP8_IN_FLOAT64)
    (reference,) = pool.run(
        1, run_layout, replace(layout, strategy=SINGLE, overlap=OverlapConfig(), micro_batch_size=None)
    )
    outcomes = pool.run(2, run_layout, layout)
    for outcome in outcomes:
        np.testing.assert_allclose(outcome.losses, reference.losses, rtol=0, atol=1e-11)
        np.testing.assert_allclose(outcome.evals, reference.evals, rtol=0, atol=1e-11)
    for of_layout, of_one in ((merged_gradients, merged_gradients([reference])), (merged, merged([reference]))):
        found = of_layout(outcomes)
        assert found.keys() == of_one.keys()
        for key, expected in of_one.items():
            np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-10, err_msg=key)


def test_it_acts_and_trains(pool: WorkerPool) -> None:
    (exact,), (rounded,) = (pool.run(1, run_layout, Layout(precision=p, steps=10)) for p in (FP64, FP8_IN_FLOAT64))
    assert abs(rounded.losses[0] - exact.losses[0]) > 1e-6
    np.testing.assert_allclose(rounded.losses, exact.losses, rtol=0.01, atol=0)
    (in_bfloat16,) = pool.run(1, run_layout, Layout(precision=FP8, steps=10))
    np.testing.assert_allclose(in_bfloat16.losses, rounded.losses, rtol=0.01, atol=0)


def test_a_gpu_without_such_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Older GPU")
    for capability, refused in (((8, 0), True), ((9, 0), False), ((10, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        check_fp8_device(PrecisionConfig(), torch.device("cuda", 0))
        check_fp8_device(FP8, torch.device("cuda"))
        check_fp8_device(FP8, torch.device("cpu"))
        if refused:
            with pytest.raises(ConfigError, match=r"An Older GPU \(compute capability 8.0\) has no such products"):
                check_fp8_device(FP8, torch.device("cuda", 0))
        else:
            check_fp8_device(FP8, torch.device("cuda", 0))
