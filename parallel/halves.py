"""Masters in halves: of a float32 whose bfloat16 copy modules compute with, only the 16 bits that the copy lacks.

    bits      seeeeeeeemmmmmmm mmmmmmmmmmmmmmmm    a float32, as an int32
              ───────┬──────── ───────┬────────
    copy      seeeeeeeemmmmmmm        │            its bfloat16: (bits + 0x8000) >> 16, the nearest
    low                        mmmmmmmmmmmmmmmm    int16: bits − (copy << 16), from −0x8000 to 0x7FFF
    bits    = (copy << 16) + low

2 bytes a parameter in place of 4, and every number comes back to the bit: zeros, denormals, infinities, and those so
large that their copy is infinity. Only of a NaN no more is kept than that it is one. Two neighbours in bfloat16 are
65,536 steps apart, of which 16 bits tell each one; so a number half way between two must always be rounded the same
way, and here that is away from zero. To the even one, as torch rounds, goes half of them up and half down: the even
one would have 65,537 that round to it. So copies differ from torch's in one of 131,072.

NVIDIA's Apex has the same in DistributedFusedAdam, and calls it store_param_remainders.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def split_bits(whole: Tensor, copy: Tensor, low: Tensor) -> None:
    """Fill `copy`, bfloat16, and `low`, int16, from `whole`, float32, of the same shape."""
    bits = whole.view(torch.int32)
    upper = (bits + 0x8000).bitwise_right_shift_(16)
    low.copy_(torch.sub(bits, upper, alpha=1 << 16))
    copy.view(torch.int16).copy_(upper)
    nan = whole.isnan()  # the largest of them carry over into what is -0
    copy.masked_fill_(nan, torch.nan)
    low.masked_fill_(nan, 0)


@torch.no_grad()
def join_bits(whole: Tensor, copy: Tensor, low: Tensor) -> None:
    """Fill `whole` with what `split_bits` made two of."""
    whole.view(torch.int32).copy_(copy.view(torch.int16)).bitwise_left_shift_(16).add_(low)


class Halves:
    """Masters, with their copies, that are either whole or in halves, all of them.

    In halves a master has a shape, a dtype and a gradient, but no memory: to read it, or a view of it, is a crash. For
    whoever reads or fills masters they are made whole, for 2 bytes a parameter more; joined and parted again, they are
    the same, and so are copies.
    """

    def __init__(self, copies: Mapping[nn.Parameter, Tensor]) -> None:
        """`copies`: by master, contiguous, in bfloat16; masters are whole, in float32, and in halves from here on."""
        self._copies = copies
        self.lows: dict[nn.Parameter, Tensor] = {}
        """By master; they have memory while that is in halves."""
        for master in copies:
            self.lows[master] = torch.empty_like(master, dtype=torch.int16)
            _free(self.lows[master])  # until it is that master's turn
        self._whole = True
        self.part()

    def part(self) -> None:
        """Into halves, copies made anew, where they are whole."""
        if self._whole:
            for master, low in self.lows.items():
                _allocate(low)
                split_bits(master, self._copies[master], low)
                _free(master)
        self._whole = False

    def join(self) -> None:
        """Make them whole, where they are in halves."""
        if not self._whole:
            for master, low in self.lows.items():
                _allocate(master)
                join_bits(master, self._copies[master], low)
                _free(low)
        self._whole = True


def _allocate(tensor: Tensor) -> None:
    if tensor.untyped_storage().nbytes() == 0:
        tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())


def _free(tensor: Tensor) -> None:
    """Its memory alone: whoever holds it, or a view of it, sees it filled again."""
    if tensor.untyped_storage().resizable():  # on a CPU what numpy has seen is not
        tensor.untyped_storage().resize_(0)
