"""Whatever the number of ranks, and after a resume with another one: the same tokens in the same step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from train.data.config import DataConfig, DataSource, MixturePart
from train.data.corpus import open_corpus
from train.data.loader import BatchLoader, heldout_batches

GLOBAL_BATCH, STEPS, VOCABULARY = 8, 4, 60_000
CPU = torch.device("cpu")


@pytest.fixture(params=["tokens", "mixture"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    """Files of ids that tell them apart, short enough for a second epoch."""
    paths = []
    for index, name in enumerate(("a.npy", "b.npy")):
        paths.append(str(tmp_path / name))
        np.save(paths[-1], np.arange(200, dtype=np.uint16) + 1000 * index)
    if request.param == "tokens":
        return DataConfig(source=DataSource.tokens, path=paths[0], sequence_length=9)
    parts = [MixturePart(DataSource.tokens, path, name=path, weight=1 + i) for i, path in enumerate(paths)]
    return DataConfig(source=DataSource.mixture, mixture=parts, sequence_length=9)


def global_batches(config: DataConfig, dp_size: int, micro_batch: int, steps: range) -> list[torch.Tensor]:
    """What `dp_size` ranks, which open the data each on their own, train on: [sequences, S + 1] a step."""
    loaders = [
        BatchLoader(
            stream=open_corpus(config, VOCABULARY, seed=5).train,
            global_batch_size=GLOBAL_BATCH,
            micro_batch_size=micro_batch,
            dp_rank=rank,
            dp_size=dp_size,
            start_step=steps.start,
            prefetch=rank % 3,
            device=CPU,
        )
        for rank in range(dp_size)
    ]
    batches = [torch.cat([next(loader) for loader in loaders], dim=1).flatten(0, 1) for _ in steps]
    for loader in loaders:
        loader.close()
    return batches


def test_the_same_tokens_in_every_layout(config: DataConfig) -> None:
    whole = global_batches(config, 1, GLOBAL_BATCH, range(STEPS))
    assert len({tuple(sample) for batch in whole for sample in batch.tolist()}) > STEPS * GLOBAL_BATCH / 2
    for dp_size, micro_batch in ((1, 1), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2)):
        assert torch.equal(torch.stack(global_batches(config, dp_size, micro_batch, range(STEPS))), torch.stack(whole))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 1)])
def test_a_resume_with_other_ranks_goes_on_where_it_was(config: DataConfig, before: int, after: int) -> None:
    whole = global_batches(config, 1, 2, range(STEPS))
    parts = global_batches(config, before, 2, range(2)) + global_batches(config, after, 1, range(2, STEPS))
    assert torch.equal(torch.stack(parts), torch.stack(whole))


def test_the_same_heldout_tokens_in_every_layout(config: DataConfig) -> None:
    def evaluated(dp_size: int, micro_batch: int) -> torch.Tensor:
        ranks = [
            heldout_batches(open_corpus(config, VOCABULARY, 5).heldout, 16, micro_batch, rank, dp_size, CPU)
            for rank in range(dp_size)
        ]
        return torch.cat([tokens_BS for batches in zip(*ranks, strict=True) for tokens_BS in batches])

    assert torch.equal(evaluated(1, 16), evaluated(2, 4))
    assert torch.equal(evaluated(1, 1), evaluated(4, 2))
