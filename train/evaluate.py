"""Loss on held-out text."""

import torch
from torch.distributed.fsdp import FSDPModule

from parallel.comm import CommKind, Communicator
from parallel.parallelize import ParallelModel
from train.batch import BatchMaker
from train.data.loader import heldout_batches
from train.data.source import SampleStream


@torch.no_grad()
def evaluate(
    parallel: ParallelModel,
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
    parallel.model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss, targets
    for tokens_BS in heldout_batches(
        heldout, n_sequences, micro_batch_size, parallel.dp_rank, parallel.degrees.dp, device
    ):
        loss_sum = parallel.model(*make_batch(tokens_BS)).cross_entropy_sum
        totals += torch.stack((loss_sum.double(), make_batch.count_targets(tokens_BS).double()))
    parallel.model.train()
    for module in parallel.model.modules():
        if isinstance(module, FSDPModule):
            # No backward comes that would do it, and parameters left gathered would be memory held for nothing.
            module.reshard()
    loss_sum, n_targets = comm.all_reduce(totals, parallel.dp_group, CommKind.control).tolist()
    return loss_sum / max(n_targets, 1)
