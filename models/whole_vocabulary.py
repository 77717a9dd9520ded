"""What a loss must know of a whole vocabulary, where its rank may hold a part of it."""

from torch import Tensor

IGNORED = -100
"""A target that nothing is learnt from; torch's own number for it."""


class WholeVocabulary:
    """All logits of a token are here. Where several ranks have some of them each, they answer these together."""

    is_whole = True
    """Whether nobody else has any of them."""

    def first(self, size: int) -> int:
        """The token id of the first of the `size` logits that are here."""
        return 0

    def largest(self, x: Tensor) -> Tensor:
        """Of all parts' maxima; `x` may be overwritten."""
        return x

    def total(self, x: Tensor) -> Tensor:
        """Of all parts' sums; `x` may be overwritten."""
        return x
