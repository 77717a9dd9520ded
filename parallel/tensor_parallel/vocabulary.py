"""The embedding and the head with a part of the vocabulary on each rank (Shoeybi et al. 2019, Megatron-LM).

B batch, S sequence, s a rank's part of it, c tokens of a chunk, D model width, v a rank's part of the vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.head import Head
from models.layers import Embedding, accumulation_dtype
from models.whole_vocabulary import WholeVocabulary
from parallel.collective_functions import Among
from parallel.tensor_parallel.sequence import gather_sequence, scatter_sequence


class VocabularyEmbedding(Embedding):
    """Looks up the ids of its part, zeros for the others; the sum over ranks is scattered along the sequence."""

    def __init__(self, whole: Embedding, among: Among) -> None:
        nn.Module.__init__(self)
        self.compute_dtype, self.init_std, self._among = whole.compute_dtype, whole.init_std, among
        self.weight = whole.weight

    def forward(self, tokens_BS: Tensor) -> Tensor:
        weight_vD = self.weight.to(accumulation_dtype(self.weight.dtype))
        local_BS = tokens_BS - self._among.group.rank() * len(weight_vD)
        elsewhere_BS = (local_BS < 0) | (local_BS >= len(weight_vD))
        x_BSD = F.embedding(local_BS.masked_fill(elsewhere_BS, 0), weight_vD)
        x_BSD = x_BSD.masked_fill(elsewhere_BS.unsqueeze(-1), 0).to(self.compute_dtype)
        return scatter_sequence(x_BSD, self._among)


class VocabularyPart(WholeVocabulary):
    """For a rank that has a part of it."""

    is_whole = False

    def __init__(self, among: Among) -> None:
        self._among = among

    def first(self, size: int) -> int:
        """Parts are equal, in the order of ranks."""
        return self._among.group.rank() * size

    def largest(self, x: Tensor) -> Tensor:
        """Over all parts."""
        return self._among.comm.all_reduce_max(x, self._among.group, self._among.kind)

    def total(self, x: Tensor) -> Tensor:
        """Over all parts."""
        return self._among.comm.all_reduce(x, self._among.group, self._among.kind)


class VocabularyHead(Head):
    """The loss of [B, s, D] on each rank, the same sum on all of them."""

    def __init__(self, whole: Head, among: Among) -> None:
        nn.Module.__init__(self)
        self.chunk_size, self.init_std, self._among = whole.chunk_size, whole.init_std, among
        self.vocabulary, self.cross_entropy = VocabularyPart(among), whole.cross_entropy
        self.weight = whole.weight

    def forward(self, x_BsD: Tensor, targets_BS: Tensor) -> Tensor:
        return super().forward(gather_sequence(x_BsD, self._among), targets_BS)
