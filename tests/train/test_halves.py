"""optim.halves: of masters only what their bfloat16 copies lack is kept, and the masters are the same to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.layout_run import BF16, ZERO1, Layout, Outcome, batches_of, open_layout, run_layout
from harness.layout_run import this_world as world
from harness.worker_pool import WorkerPool
from torch import nn

from launch.verify.pieces import Piece, pieces
from parallel.comm import Communicator
from parallel.config import OverlapConfig
from parallel.halves import Halves, join_bits, split_bits
from parallel.native_engine import NativeEngine
from train.adamw_update import Hyper, scalars, update
from train.checkpoint.manifest import Progress
from train.checkpoint.store import CheckpointStore
from train.config import Moments, OptimConfig
from train.step import OptimizerStep

WHOLE = OptimConfig(one_pass=True)
HALVES = replace(WHOLE, halves=True)
EP = replace(ZERO1, ep=2)
ALONE = Layout(ZERO1, precision=BF16, eval_sequences=8, micro_batch_size=4, optim=WHOLE)


def halves_of(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    copy, low = whole.bfloat16(), torch.empty_like(whole, dtype=torch.int16)
    split_bits(whole, copy, low)
    return copy, low


def floats(bits: torch.Tensor) -> torch.Tensor:
    return bits.int().view(torch.float32)


def test_every_number_comes_back() -> None:
    """Every lower half under upper ones of every kind: zero, denormal, ordinary, the largest, infinity; both signs."""
    lower = torch.arange(1 << 16)
    for upper in (0x0000, 0x0001, 0x007F, 0x0080, 0x3F7F, 0x3F80, 0x3F81, 0x7F7E, 0x7F7F, 0x7F80, 0x7FC0, 0x7FFF):
        for sign in (0, -1 << 31):
            whole = floats(sign + (upper << 16) + lower)
            copy, low = halves_of(whole)
            back = torch.empty_like(whole)
            join_bits(back, copy, low)
            nan = whole.isnan()
            assert torch.equal(back.view(torch.int32)[~nan], whole.view(torch.int32)[~nan])
            assert torch.equal(copy.isnan(), nan)
            assert torch.equal(back.isnan(), nan)
            tie = lower == 0x8000
            assert torch.equal(copy[~tie & ~nan], whole.bfloat16()[~tie & ~nan])
            if upper < 0x7F80:
                assert copy[tie].view(torch.int16).item() & 0x7FFF == upper + 1, "away from zero"


def test_any_bits_come_back() -> None:
    whole = floats(torch.randint(-1 << 31, 1 << 31, (1 << 20,), generator=torch.Generator().manual_seed(2)))
    whole = whole[~whole.isnan()]
    back = torch.empty_like(whole)
    join_bits(back, *halves_of(whole))
    assert torch.equal(back.view(torch.int32), whole.view(torch.int32))


def test_masters_go_into_halves_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start: what is made of the next one has no memory before this one's is free."""
    copies = {nn.Parameter(torch.ones(8)): torch.ones(8, dtype=torch.bfloat16) for _ in range(3)}
    make, lows, seen = torch.empty_like, [], []

    def make_and_keep(*args: Any, **kwargs: Any) -> torch.Tensor:
        lows.append(make(*args, **kwargs))
        return lows[-1]

    def split_and_look(*args: torch.Tensor) -> None:
        seen.append(tuple(sum(t.untyped_storage().nbytes() for t in some) for some in (copies, lows)))
        split_bits(*args)

    monkeypatch.setattr("parallel.halves.torch.empty_like", make_and_keep)
    monkeypatch.setattr("parallel.halves.split_bits", split_and_look)
    Halves(copies)
    assert seen == [(96, 16), (64, 32), (32, 48)]


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_the_update_of_halves_is_that_of_the_whole(moments: torch.dtype) -> None:
    generator, hyper = torch.Generator().manual_seed(1), Hyper(1e-2, 0.9, 0.95, 1e-8, 0.1)
    master = nn.Parameter(torch.randn(999, 7, generator=generator))
    whole, copy = master.detach().clone(), nn.Parameter(master.detach().bfloat16())
    kept = Halves({master: copy})
    states = [[torch.zeros(master.shape, dtype=moments) for _ in range(2)] for _ in range(2)]
    for step in range(1, 6):
        grad = torch.randn(master.shape, generator=generator).bfloat16()
        known = scalars(hyper, torch.tensor(float(step)), torch.tensor(0.3), torch.tensor(step == 3))
        with torch.no_grad():
            update(whole, *states[0], grad, hyper, known, 4)
            update(master, *states[1], grad, hyper, known, 4, copy, kept.lows[master])
        assert torch.equal(copy.view(torch.int16), halves_of(whole)[0].view(torch.int16))
        assert master.untyped_storage().nbytes() == 0
        if step == 2:  # read between two steps
            kept.join()
            kept.part()
    kept.join()
    assert torch.equal(master, whole)
    for ours, theirs in zip(*states, strict=True):
        assert torch.equal(ours, theirs)


def test_either_half_has_memory_and_nobody_both() -> None:
    master, copy = nn.Parameter(torch.randn(6, 4)), torch.empty(6, 4, dtype=torch.bfloat16)
    row, before = master.detach()[2], master.detach().clone()
    kept = Halves({master: copy})
    sizes = [(t.untyped_storage().nbytes(), t.shape) for t in (master, kept.lows[master])]
    assert sizes == [(0, (6, 4)), (48, (6, 4))]
    master.grad = torch.ones(6, 4)
    for _ in range(2):
        kept.join()
    assert [t.untyped_storage().nbytes() for t in (master, kept.lows[master])] == [96, 0]
    assert torch.equal(master, before)
    row.fill_(1.5)  # as a load does, through a view of before
    for _ in range(2):
        kept.part()
    assert torch.equal(copy[2].float(), row.new_full((4,), 1.5))
    assert torch.equal(master.grad, torch.ones(6, 4))


CASES = {
    "one": (1, ALONE),
    "experts": (2, replace(ALONE, strategy=EP)),
    "accumulated": (2, replace(ALONE, strategy=EP, micro_batch_size=2)),
    "moments": (1, replace(ALONE, optim=replace(WHOLE, moments=Moments.bfloat16))),
    "early": (2, replace(ALONE, strategy=EP, overlap=OverlapConfig(bucket_mib=0.01, optimizer=True), clip_norm=None)),
    "tensor": (2, replace(ALONE, strategy=replace(ZERO1, dp_replicate=1, tp=2))),
    "pipeline": (2, replace(ALONE, strategy=replace(ZERO1, dp_replicate=1, pp=2), micro_batch_size=2)),
}


def run_whole(layout: Layout) -> Outcome:
    """Whole masters, but copies in which ties go away from zero: before the first forward, and after every update."""
    plain, forward_backward = NativeEngine.update, NativeEngine.forward_backward

    def round_away(engine: NativeEngine) -> None:
        for master, copy in engine._parallel.gradients.copies().items():
            split_bits(master, copy, torch.empty_like(master, dtype=torch.int16))

    def forward(self: NativeEngine, *args: Any) -> Any:
        round_away(self)
        return forward_backward(self, *args)

    def update(self: NativeEngine, *args: Any) -> Any:
        done = plain(self, *args)
        round_away(self)
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(NativeEngine, "forward_backward", forward)
        patched.setattr(NativeEngine, "update", update)
        return run_layout(layout)


def run_and_read(layout: Layout) -> Outcome:
    """With weights read before every update and after it."""
    plain = NativeEngine.update

    def update(self: NativeEngine, *args: Any) -> Any:
        pieces(self.weights())
        done = plain(self, *args)
        pieces(self.weights())
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(NativeEngine, "update", update)
        return run_layout(layout)


def in_halves(layout: Layout) -> Layout:
    return replace(layout, optim=replace(layout.optim, halves=True))


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_whole_masters_to_the_bit(name: str, pool: WorkerPool) -> None:
    ranks, layout = CASES[name]
    assert_same(pool.run(ranks, run_layout, in_halves(layout)), pool.run(ranks, run_whole, layout))


@pytest.mark.parametrize("name", ["one", "experts", "early"])
def test_reading_changes_nothing(name: str, pool: WorkerPool) -> None:
    ranks, layout = CASES[name]
    read, plain = (pool.run(ranks, function, in_halves(layout)) for function in (run_and_read, run_layout))
    assert_same(read, plain)


def assert_same(ours: list[Outcome], theirs: list[Outcome]) -> None:
    for got, expected in zip(ours, theirs, strict=True):
        assert (got.losses, got.evals, got.grad_norms) == (expected.losses, expected.evals, expected.grad_norms)
        assert got.issued == expected.issued
        state = got.weights | got.moments | got.first_gradients
        for key, piece in (expected.weights | expected.moments | expected.first_gradients).items():
            np.testing.assert_array_equal(state[key].array, piece.array, key)


def bytes_of_masters(layout: Layout) -> tuple[list[int], list[int], int]:
    """Of masters between steps and when they are read, and the elements of those that no other rank holds."""
    comm = Communicator()
    engine = open_layout(layout, world(), comm)
    assert isinstance(engine, NativeEngine)
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
    parallel = engine._parallel  # type: ignore[attr-defined]
    alone = parallel.gradients.copies()

    def sizes() -> list[int]:
        lows = engine._halves.lows.values()
        return [sum(t.untyped_storage().nbytes() for t in some) for some in (alone, lows)]

    tokens = batches_of(layout, engine.data)
    told = []
    for _ in range(2):
        step(next(tokens), layout.rate)
        assert all(master.grad is None for master in alone)
        told.append(sizes())
        engine.weights()
        told.append(sizes())
    assert told[:2] == told[2:]
    return told[0], told[1], sum(master.numel() for master in alone)


@pytest.mark.parametrize("name", ["one", "experts"])
def test_between_steps_masters_take_two_bytes(name: str, pool: WorkerPool) -> None:
    ranks, layout = CASES[name]
    for between, read, numel in pool.run(ranks, bytes_of_masters, in_halves(layout)):
        assert numel >= 9216  # three experts of two layers
        assert between == [0, 2 * numel]
        assert read == [4 * numel, 0]


def train(layout: Layout, folder: Path, first: int, last: int) -> tuple[list[float], dict[str, Piece]]:
    """Steps from `first` (a resume, but for the first one) to `last`, where state is saved behind two steps more."""
    comm = Communicator()
    engine = open_layout(layout, world(), comm)
    store = CheckpointStore(folder, comm, behind=True)
    assert store.resume(engine).progress.step == first - 1
    step = OptimizerStep(engine, comm, layout.batching, layout.global_batch_size, clip_norm=1.0)
    tokens = batches_of(layout, engine.data, start_step=first - 1)
    losses = []
    for number in range(first, last + 3):
        loss = step(next(tokens), layout.rate).loss.item()
        if number <= last:
            losses.append(loss)
        if number == last:
            state = pieces(engine.weights() | engine.moments())
            store.save(engine, Progress(last, last), keep=0)
    store.finish()
    return losses, state


def resumed(layout: Layout, folder: Path) -> dict[str, Piece]:
    engine = open_layout(layout, world(), comm := Communicator(), seed=9)
    CheckpointStore(folder, comm, behind=True).resume(engine)
    return pieces(engine.weights() | engine.moments())


@pytest.mark.parametrize("name", ["one", "experts"])
@pytest.mark.parametrize(("saver", "loader"), [(HALVES, WHOLE), (WHOLE, HALVES), (HALVES, HALVES)])
def test_each_reads_the_others_checkpoints(
    name: str, saver: OptimConfig, loader: OptimConfig, pool: WorkerPool, tmp_path: Path
) -> None:
    """To the bit; and a run that goes on is the one that was never cut off."""
    ranks, layout = CASES[name]
    saved = pool.run(ranks, train, replace(layout, optim=saver), tmp_path, 1, 2)
    loaded = pool.run(ranks, resumed, replace(layout, optim=loader), tmp_path)
    for (_, state), again in zip(saved, loaded, strict=True):
        assert state.keys() == again.keys()
        for key, piece in state.items():
            np.testing.assert_array_equal(again[key].array, piece.array, key)
    if saver is loader:
        gone_on = pool.run(ranks, train, replace(layout, optim=loader), tmp_path, 3, 4)
        through = pool.run(ranks, train, replace(layout, optim=loader), tmp_path / "through", 1, 4)
        for (losses, state), (all_losses, expected) in zip(gone_on, through, strict=True):
            assert losses == all_losses[2:]
            for key, piece in expected.items():
                np.testing.assert_array_equal(state[key].array, piece.array, key)
