"""What a job says of its routing: each number where its option is on, and absent where it is off."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.job_in_pool import job_in_pool
from harness.run_record import RunRecord
from harness.worker_pool import WorkerPool

WORDS = (
    "model=tiny",
    "train.device=cpu",
    "train.steps=4",
    "train.log_every=1",
    "train.eval_sequences=0",
    "logging=off",
)
OPTIONAL = {"train/router_loss", "moe/dropped_fraction", "moe/rank_load_max_over_mean"}


@pytest.fixture(scope="module")
def rows(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder: Path = tmp_path_factory.mktemp("run")
    options = ("model.moe.capacity_factor=0.5", "model.moe.z_loss_weight=0.01")
    done = job_in_pool(pool, 1, *WORDS, *options, "strategy=single", "checkpoint=off", f"run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return RunRecord(folder).step_rows


def test_half_the_even_share_drops_half_and_more(rows: list[dict[str, float]]) -> None:
    """Capacity is half of what even loads would take: where all experts are full, half is dropped; no less."""
    assert len(rows) == 4
    assert all(0.5 <= row["moe/dropped_fraction"] < 1 for row in rows)
    # Loads count every choice, the dropped ones too: balancing must see them.
    assert max(row["moe/load_max_over_mean"] for row in rows) > 1


def test_the_router_loss_is_beside_the_loss_and_not_in_it(rows: list[dict[str, float]]) -> None:
    # 8 experts: log-sum-exp of small logits is about ln 8 = 2.1, squared 4.3, times 0.01, in two layers.
    assert all(0.05 < row["train/router_loss"] < 0.2 for row in rows)
    assert all(5 < row["train/loss"] < 7 for row in rows)


def test_how_even_and_how_decided_the_routers_are(rows: list[dict[str, float]]) -> None:
    assert all(0.5 < row["moe/load_entropy"] < 1 for row in rows)
    # At the start all 8 experts score about alike.
    assert all(0.95 * math.log(8) < row["moe/router_entropy"] < math.log(8) for row in rows)
    norms = [row["moe/bias_norm"] for row in rows]
    assert norms[0] == 0 < norms[1]  # the first step's choices were made without biases


def test_none_is_there_without_its_option(trained: Callable[[str], RunRecord]) -> None:
    assert not OPTIONAL & trained("single fp64").step_rows[-1].keys()
