"""Whole jobs of eight ranks from the command line: every layout of several axes has the losses of one process.

`make soak`; as a table, `python -m tests.train.test_eight_ranks`.
"""

import sys
import tempfile
from pathlib import Path

import pytest
from harness.run_record import RunRecord
from harness.torchrun import alone, torchrun

pytestmark = pytest.mark.soak

JOB = (
    "model=tiny",
    "model.n_layers=5",  # over two stages, unevenly
    "train.device=cpu",
    "train.steps=20",
    "train.log_every=1",
    "train.global_batch_size=32",
    "train.eval_sequences=8",
    "precision=fp64",
    "logging=off",
    "checkpoint=off",
)
LAYOUTS = (
    "hsdp",
    "fsdp_ep",
    "hsdp_ep",
    "tp_ep",
    "fsdp_tp",
    "pp_fsdp",
    "pp_ep",
    "pp_tp",
    "pp_fsdp_ep",
    "pp_fsdp_tp_ep",
    "pp_ep strategy.schedule=dualpipe",
)


def train(nproc: int, folder: Path, *words: str) -> RunRecord:
    where = f"run.dir={folder}"
    done = alone(*JOB, *words, where) if nproc == 1 else torchrun(nproc, *JOB, *words, where, timeout=300)
    assert done.returncode == 0, done.stderr
    return RunRecord(folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return train(1, tmp_path_factory.mktemp("single") / "run", "strategy=single")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_ranks_train_as_one(layout: str, single: RunRecord, tmp_path: Path) -> None:
    eight = train(8, tmp_path / "run", *f"strategy={layout}".split())
    for key in ("train/loss", "train/grad_norm", "eval/loss"):
        assert eight.column(key) == pytest.approx(single.column(key), rel=0, abs=1e-12), key
    for key in ("train/tokens", "train/lr", "moe/load_max_over_mean"):
        assert eight.column(key) == single.column(key), key


def print_table() -> None:
    """One row a layout: first, tenth and last loss, and the largest difference from one process."""
    with tempfile.TemporaryDirectory() as name:
        one = train(1, Path(name) / "single", "strategy=single").column("train/loss")
        print(f"| layout | loss 1 | loss 10 | loss 20 | most apart from single |\n|{'---|' * 5}")
        print(f"| single | {one[0]:.12f} | {one[9]:.12f} | {one[19]:.12f} | |")
        for number, layout in enumerate(LAYOUTS):
            losses = train(8, Path(name) / str(number), *f"strategy={layout}".split()).column("train/loss")
            apart = max(abs(a - b) for a, b in zip(losses, one, strict=True))
            print(f"| {layout} | {losses[0]:.12f} | {losses[9]:.12f} | {losses[19]:.12f} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    sys.exit(print_table())
