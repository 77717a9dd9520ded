"""Loss on held-out text."""

import torch

from parallel.comm import Communicator
from parallel.comm_kind import CommKind
from parallel.engine import Engine
from train.batch import BatchMaker
from train.data.loader import heldout_batches
from train.data.source import SampleStream

AT_ONCE = 16
"""Micro-batches that go through a pipeline together; more would only keep more tokens in memory."""


def evaluate(
    engine: Engine,
    heldout: SampleStream,
    make_batch: BatchMaker,
    n_sequences: int,
    micro_batch_size: int,
    comm: Communicator,
    device: torch.device,
) -> float:
    """Mean cross-entropy, nats per target, of the first `n_sequences` of `heldout`: the same ones in every layout.

    Called by all ranks together.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss, targets
    tokens = list(heldout_batches(heldout, n_sequences, micro_batch_size, engine.data.rank, engine.data.size, device))
    for first in range(0, len(tokens), AT_ONCE):
        group = tokens[first : first + AT_ONCE]
        totals[0] += engine.cross_entropy_sum([make_batch(tokens_BS) for tokens_BS in group])
        if engine.counts_data:
            totals[1] += sum(make_batch.count_targets(tokens_BS) for tokens_BS in group)
    loss_sum, n_targets = comm.all_reduce(totals, None, CommKind.control).tolist()
    return loss_sum / max(n_targets, 1)
