"""Loss on held-out text."""

import torch
from torch.distributed.fsdp import FSDPModule

from models.loss import cross_entropy_sum
from parallel.comm import CommKind, Communicator
from parallel.parallelize import ParallelModel
from train.data.loader import heldout_batches
from train.data.source import TokenSource


@torch.no_grad()
def evaluate(
    parallel: ParallelModel,
    source: TokenSource,
    n_sequences: int,
    micro_batch_size: int,
    comm: Communicator,
    device: torch.device,
) -> float:
    """Mean cross-entropy, nats per token, of the first `n_sequences` of `source`: the same ones in every layout.

    Called by all ranks together.
    """
    parallel.model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    n_tokens = 0
    dp = parallel.degrees.dp
    for tokens_BS in heldout_batches(source, n_sequences, micro_batch_size, parallel.dp_rank, dp, device):
        targets_BS = tokens_BS[:, 1:]
        loss_sum += cross_entropy_sum(parallel.model(tokens_BS[:, :-1]), targets_BS)
        n_tokens += targets_BS.numel() * dp
    parallel.model.train()
    for module in parallel.model.modules():
        if isinstance(module, FSDPModule):
            # No backward comes that would do it, and parameters left gathered would be memory held for nothing.
            module.reshard()
    return comm.all_reduce(loss_sum, parallel.dp_group, CommKind.control).item() / n_tokens
