"""optim.one_pass: AdamW that clips and leaves out in the pass that updates, to torch's numbers."""

from dataclasses import replace

import pytest
import torch
from harness.interpreted import check_interpreted, needs_triton
from harness.layout_run import BF16, DDP, FSDP, ZERO1, Layout, merged, run_layout
from harness.worker_pool import WorkerPool
from torch import nn

from conf.compose import compose
from conf.schema import validate
from models.config import ConfigError
from parallel.config import OverlapConfig
from parallel.update import step_unless
from train.adamw_update import Hyper, round_to_bfloat16, scalars, update
from train.config import Moments, OptimConfig
from train.optimizer import build_optimizer

ONE_PASS = OptimConfig(one_pass=True)
CLIPS = (1.0, 0.3, 0.05, 1.0, 0.7)
LEFT_OUT = 2
"""Of the steps, one is not finite."""


def trained(optim: OptimConfig, dtype: torch.dtype) -> tuple[list[torch.Tensor], float]:
    generator = torch.Generator().manual_seed(5)
    parameters = [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in ((7, 5), (11,), (3, 2, 4))]
    optimizer = build_optimizer(parameters, optim)
    for number, clip in enumerate(CLIPS):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            if number == LEFT_OUT:
                parameter.grad[0] = float("nan")
        step_unless(torch.tensor(number == LEFT_OUT), optimizer, torch.tensor(clip, dtype=torch.float64))
    steps = {optimizer.state[parameter]["step"].item() for parameter in parameters}
    assert len(steps) == 1
    return [parameter.detach() for parameter in parameters], steps.pop()


def test_numbers_are_those_of_torch() -> None:
    plain, one_pass = (trained(OptimConfig(one_pass=one), torch.float64) for one in (False, True))
    assert plain[1] == one_pass[1] == len(CLIPS) - 1
    for expected, got in zip(plain[0], one_pass[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("accumulated", [False, True], ids=["one_micro_batch", "accumulated"])
def test_masters_are_rounded_and_gradients_are_read_as_they_come(accumulated: bool, pool: WorkerPool) -> None:
    """Experts that no other rank holds, in bfloat16: one micro-batch's gradient is the sum, and modules compute with
    what the optimizer wrote: were it not, losses would be others."""
    layout = Layout(replace(ZERO1, ep=2), precision=BF16, micro_batch_size=2 if accumulated else 4, eval_sequences=8)
    plain, ours = (pool.run(2, run_layout, replace(layout, optim=optim)) for optim in (OptimConfig(), ONE_PASS))
    for got, expected in zip(ours, plain, strict=True):
        assert got.losses == pytest.approx(expected.losses, rel=1e-6)
        assert got.evals == pytest.approx(expected.evals, rel=1e-6)
        dtypes = {name: piece.array.dtype for name, piece in got.first_gradients.items()}
        assert dtypes == {name: piece.array.dtype for name, piece in expected.first_gradients.items()}
    weights = merged(plain)
    for name, value in merged(ours).items():
        assert value == pytest.approx(weights[name], rel=0, abs=1e-6), name


@pytest.mark.parametrize(
    "layout",
    [
        Layout(DDP, OverlapConfig(bucket_mib=0.005)),
        Layout(replace(ZERO1, ep=2), micro_batch_size=2),
        Layout(FSDP),
        Layout(DDP, OverlapConfig(bucket_mib=0.005, optimizer=True), clip_norm=None),
    ],
    ids=["ddp", "zero1_ep", "fsdp", "early"],
)
def test_layouts_are_those_of_torch(layout: Layout, pool: WorkerPool) -> None:
    plain, ours = (pool.run(2, run_layout, replace(layout, optim=optim)) for optim in (OptimConfig(), ONE_PASS))
    for got, expected in zip(ours, plain, strict=True):
        assert got.losses == pytest.approx(expected.losses, rel=0, abs=1e-11)
    weights = merged(plain)
    for name, value in merged(ours).items():
        assert value == pytest.approx(weights[name], rel=0, abs=1e-11), name


def test_rounding_is_right_in_the_mean() -> None:
    x = torch.full((40_000,), 1.0 + 2**-10)  # an eighth of the way from 1 to its neighbour
    noise = torch.randint(0, 1 << 15, x.shape, generator=torch.Generator().manual_seed(1))
    rounded = round_to_bfloat16(x, noise).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.mean().item() == pytest.approx(x[0].item(), abs=5 * 2**-7 * (7 / 64 / len(x)) ** 0.5)
    exact = torch.tensor([0.0, -2.5, float("inf")])
    assert torch.equal(round_to_bfloat16(exact, noise[:3]).float(), exact)
    nan = torch.tensor([0x7FFFFFFF, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert round_to_bfloat16(nan, torch.tensor([(1 << 15) - 1] * 2)).isnan().all()


def test_moments_in_bfloat16_see_what_is_small() -> None:
    """A mean of squares that decays by a thousandth: rounded to the nearest it would stand still at its start."""
    hyper = Hyper(0.0, 0.9, 0.999, 1e-8, 0.0)
    p, grad = torch.zeros(4_000), torch.full((4_000,), 0.5)
    m, v = torch.zeros(4_000, dtype=torch.bfloat16), torch.ones(4_000, dtype=torch.bfloat16)
    for step in range(1, 301):
        update(p, m, v, grad, hyper, scalars(hyper, torch.tensor(float(step)), None, None), 0)
    assert v.float().mean().item() == pytest.approx(0.25 + 0.75 * 0.999**300, rel=2e-3)
    assert m.float().mean().item() == pytest.approx(0.5, rel=2e-3)


def test_moments_in_bfloat16_train_as_well(pool: WorkerPool) -> None:
    """Half the memory of moments; losses of 40 steps near those of full ones, and replicas alike to the bit."""
    layout = Layout(DDP, precision=BF16, steps=40, rate=3e-3)
    half = replace(ONE_PASS, moments=Moments.bfloat16)
    full, ours = (pool.run(2, run_layout, replace(layout, optim=optim)) for optim in (ONE_PASS, half))
    assert ours[0].losses != full[0].losses
    assert ours[0].losses[-1] == pytest.approx(full[0].losses[-1], rel=5e-3)
    for of in ("weights", "moments"):
        for name, piece in getattr(ours[0], of).items():
            assert (piece.array == getattr(ours[1], of)[name].array).all(), name


@needs_triton
@pytest.mark.parametrize("module", ["harness.kernel_beside_update", "harness.kernel_beside_addition"])
def test_kernels_are_the_update_and_the_addition(module: str) -> None:
    check_interpreted(module)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.moments=bfloat16"], "optim.moments=bfloat16: torch's AdamW keeps moments as it keeps weights; set it"),
        (["optim.halves=true"], "optim.halves=true: torch's AdamW reads and writes whole masters; set it to false, or"),
        (["optim.one_pass=true", "strategy=deepspeed_zero1"], "optim.one_pass=true: strategy.engine=deepspeed steps"),
        (
            ["optim.one_pass=true", "optim.moments=bfloat16", "strategy=pp", "strategy.schedule=dualpipe"],
            "optim.moments=bfloat16: the two copies of a stage that strategy.schedule=dualpipe keeps",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(compose(["model=tiny", *words]).config, 2)
    assert str(caught.value).startswith(said)
