"""Products of bfloat16 matrices that are not rounded to it.

A GPU multiplies bfloat16 with sums in float32 and rounds these as the last thing it does. torch can leave that out
(`out_dtype`) on CUDA alone.

M, N rows and columns of the product, K what is summed over.
"""

import torch
from torch import Tensor


def add_product_(sum_MN: Tensor, a_MK: Tensor, b_KN: Tensor, first: bool) -> None:
    """Add a @ b to `sum_MN`, in its own dtype, or set it to that where it is the `first` and nothing is there yet."""
    old = 0 if first else 1  # by 0 torch multiplies nothing, not even NaN
    if sum_MN.dtype is a_MK.dtype:
        torch.addmm(sum_MN, a_MK, b_KN, beta=old, out=sum_MN)
    elif sum_MN.is_cuda:
        torch.addmm(sum_MN, a_MK, b_KN, out_dtype=sum_MN.dtype, beta=old, out=sum_MN)
    else:
        product_MN = a_MK @ b_KN
        sum_MN.copy_(product_MN) if first else sum_MN.add_(product_MN)
