"""A job goes on in any other layout, on any number of ranks: its loss curve is that of a job that never stopped."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import alone, torchrun

JOB = (
    "model=tiny",
    "data=synthetic",
    "train.device=cpu",
    "train.log_every=1",
    "train.eval_sequences=0",
    "optim.warmup_steps=3",
    "optim.schedule=constant",  # the rates of half the job are those of the whole
    "logging=off",
)
STEPS = 8

Layout = tuple[int, str]
"""Ranks, and words."""
SINGLE: Layout = (1, "strategy=single")
DDP: Layout = (2, "strategy=ddp")
FSDP: Layout = (2, "strategy=fsdp")
FSDP_4: Layout = (4, "strategy=fsdp")
HSDP: Layout = (4, "strategy=hsdp strategy.dp_replicate=2")
ZERO1: Layout = (2, "strategy=zero1")
EP: Layout = (2, "strategy=ep")
EP_DEALT: Layout = (4, "strategy=ep strategy.placement=round_robin")
FSDP_EP: Layout = (4, "strategy=fsdp_ep strategy.ep=2")
TP: Layout = (2, "strategy=tp")
PP: Layout = (2, "strategy=pp")
DUALPIPE: Layout = (2, "strategy=pp strategy.schedule=dualpipe")
PP_TP: Layout = (4, "strategy=pp_tp")

PAIRS = {
    "fsdp on 2, single": (FSDP, SINGLE),
    "ep, dualpipe": (EP, DUALPIPE),
    "single, fsdp on 4": (SINGLE, FSDP_4),
    "fsdp on 4, zero1 on 2": (FSDP_4, ZERO1),
    "zero1 on 2, hsdp on 4": (ZERO1, HSDP),
    "hsdp, tp": (HSDP, TP),
    "tp, fsdp_ep": (TP, FSDP_EP),
    "fsdp_ep, ep dealt out": (FSDP_EP, EP_DEALT),
    "ep dealt out, pp": (EP_DEALT, PP),
    "dualpipe, pp_tp": (DUALPIPE, PP_TP),
    "pp_tp, ddp": (PP_TP, DDP),
}


def train(layout: Layout, record: RunRecord, steps: int, *words: str) -> None:
    nproc, strategy = layout
    words = (*JOB, *strategy.split(), f"train.steps={steps}", f"run.dir={record.folder}", *words)
    done = alone(*words) if nproc == 1 else torchrun(nproc, *words)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunRecord]:
    """A whole job in one go."""

    @cache
    def whole(layout: Layout, *words: str) -> RunRecord:
        record = RunRecord(tmp_path_factory.mktemp("undisturbed") / "run")
        train(layout, record, STEPS, *words)
        return record

    return whole


def halves(first: Layout, second: Layout, record: RunRecord, *words: str) -> list[float]:
    """The losses of a job that went over from one layout to another half-way."""
    train(first, record, STEPS // 2, *words)
    train(second, record, STEPS, *words)
    losses = {row["train/step"]: row["train/loss"] for row in record.rows if "train/loss" in row}
    assert list(losses) == list(range(1, STEPS + 1))
    return list(losses.values())


@pytest.mark.parametrize("pair", [pytest.param(name, marks=pytest.mark.soak) for name in PAIRS])
def test_the_curve_is_one(pair: str, undisturbed: Callable[..., RunRecord], tmp_path: Path) -> None:
    losses = halves(*PAIRS[pair], RunRecord(tmp_path / "run"), "precision=fp64")
    expected = undisturbed(SINGLE, "precision=fp64").column("train/loss")
    assert losses == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.soak
@pytest.mark.parametrize(
    "pair",
    [("deepspeed_zero2", "accelerate_ddp"), ("accelerate_ddp", "zero1"), ("fsdp", "deepspeed_zero3")],
    ids="-".join,
)
def test_over_engines_it_is_one_in_float32(
    pair: tuple[str, str], undisturbed: Callable[..., RunRecord], tmp_path
) -> None:
    first, second = ((2, f"strategy={name}") for name in pair)
    # Summed in another order, products are rounded otherwise. Whose engine it is, checkpoints are ours.
    words = ("train.micro_batch_size=4", "overlap.checkpoint=false")
    losses = halves(first, second, RunRecord(tmp_path / "run"), *words)
    assert losses == pytest.approx(undisturbed(DDP, *words).column("train/loss"), rel=0, abs=1e-5)
