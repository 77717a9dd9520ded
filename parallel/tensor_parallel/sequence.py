"""Sequence parallelism: between its matrices, each rank has its own part of every sequence (Korthikanti et al. 2022).

    residual stream   [B, S/R, D] on each rank        norms and router: whole weights, a part of the tokens
      all_gather   →  [B, S, D]                       attention, feed-forward: a part of the weights, all tokens
      reduce_scatter  [B, S/R, D]                     their outputs are partial sums

So a gradient of any weight that is not split is a partial sum over the ranks, wherever in the network it is: inside,
for each rank has some of the heads or of the width; outside, for it has some of the tokens. One rule: they are summed.

B batch, S sequence, s = S/R a rank's part of it, R ranks, D model width, K experts per token.
"""

import torch
from torch import Tensor

from models.whole_sequence import WholeSequence
from parallel.collective_functions import Among, all_gather, reduce_scatter


def gather_sequence(x_BsD: Tensor, among: Among) -> Tensor:
    """[B, s, D] of each rank to [B, S, D]; backward sums and scatters."""
    return all_gather(x_BsD.transpose(0, 1), among).transpose(0, 1)


def scatter_sequence(x_BSD: Tensor, among: Among) -> Tensor:
    """Partial sums [B, S, D] to the rank's part [B, s, D] of the sum; backward gathers."""
    return reduce_scatter(x_BSD.transpose(0, 1), among).transpose(0, 1)


class SequencePart(WholeSequence):
    """For a rank that has a part of each sequence."""

    def __init__(self, among: Among) -> None:
        self.among = among

    def whole(self, choices_BsK: Tensor) -> Tensor:
        """The choices for all tokens of the sequences, without gradient."""
        comm = self.among.comm
        return comm.wait(
            comm.start_all_gather(choices_BsK.transpose(0, 1), self.among.group, self.among.kind)
        ).transpose(0, 1)

    def whole_length(self, n_tokens: int) -> int:
        """See WholeSequence."""
        return n_tokens * self.among.group.size()

    def places(self, n_tokens: int, device: torch.device) -> Tensor:
        """See WholeSequence."""
        return torch.arange(n_tokens, device=device) + self.among.group.rank() * n_tokens

    def own(self, of_whole_BSK: Tensor) -> Tensor:
        """This rank's tokens of it."""
        n = of_whole_BSK.shape[1] // self.among.group.size()
        return of_whole_BSK.narrow(1, self.among.group.rank() * n, n)
