"""What a router must know of a whole sequence, where its rank may hold a part of it.

B sequences, S tokens of each, K experts per token.
"""

import torch
from torch import Tensor


class WholeSequence:
    """All tokens of a sequence are here. Where several ranks have a part each, they answer these together."""

    def whole(self, choices_BSK: Tensor) -> Tensor:
        """The choices for all tokens of the sequences, without gradient."""
        return choices_BSK

    def whole_length(self, n_tokens: int) -> int:
        """Of a sequence of which this rank has `n_tokens`."""
        return n_tokens

    def places(self, n_tokens: int, device: torch.device) -> Tensor:
        """Where in its sequence each of this rank's `n_tokens` of it is."""
        return torch.arange(n_tokens, device=device)

    def own(self, of_whole_BSK: Tensor) -> Tensor:
        """This rank's tokens of it."""
        return of_whole_BSK
