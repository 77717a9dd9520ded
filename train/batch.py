"""From a sample's tokens to what a model is asked: inputs, targets, and which document each token is in.

B sequences, S tokens of context; a sample holds S + 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.transformer import Batch
from models.whole_vocabulary import IGNORED


@dataclass(frozen=True)
class BatchMaker:
    """Cuts samples, in which documents are packed end to end, each closed by a separator.

    The separator itself is learnt: a document's end can be told from what it says. The token after it can not, it
    begins another document, and so it is no target.
    """

    separator: int | None
    """The id that ends a document; None: a sample is one text."""
    split_attention: bool
    """Keep attention inside documents too."""

    def __call__(self, tokens_BS: Tensor) -> Batch:
        """Samples [B, S + 1] as a batch of [B, S]."""
        inputs_BS, targets_BS = tokens_BS[:, :-1], tokens_BS[:, 1:]
        if self.separator is None:
            return Batch(inputs_BS, targets_BS, None)
        ends_BS = inputs_BS == self.separator
        # A separator belongs to the document it ends.
        documents_BS = ends_BS.cumsum(1) - ends_BS.long() if self.split_attention else None
        return Batch(inputs_BS, targets_BS.masked_fill(ends_BS, IGNORED), documents_BS)

    def count_targets(self, tokens: Tensor) -> Tensor:
        """How many targets samples [..., S + 1] have, int64, on their device: no wait for it."""
        if self.separator is None:
            return torch.full((), tokens[..., 1:].numel(), device=tokens.device)
        return (tokens[..., :-1] != self.separator).sum()
