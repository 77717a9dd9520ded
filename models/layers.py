"""The three layers that hold plain weights: Linear, Embedding, RMSNorm.

One rule of precision for the whole network: a parameter is rounded to the dtype of the activations it meets, whatever
the layout. FSDP gathers bf16 parameters; one process casts its fp32 masters here; both then compute the same numbers.
What needs range (norms, router, softmax, loss) computes in at least float32 *from there*: `accumulation_dtype`.

B batch, S sequence, D model width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """At least float32, and float64 stays float64 (a hard `.float()` would end parity in float64)."""
    return torch.promote_types(dtype, torch.float32)


class Linear(nn.Module):
    """y = x Wᵀ (+ b). `residual_depth` is the number of residual additions that outputs like this one share.

    Weights start normal with variance 1 / fan_in, divided by `residual_depth` for projections back into the residual
    stream, so that the stream's variance does not grow with depth (GPT-2, section 2.3). A bias starts at 0.
    """

    def __init__(self, in_features: int, out_features: int, residual_depth: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.init_std = {"weight": (in_features * residual_depth) ** -0.5, "bias": 0.0}
        self.multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear
        """x, weight and bias of one dtype to y; models/fp8_linear.py has another."""

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight.to(x.dtype), self.bias.to(x.dtype) if self.bias is not None else None)


class Embedding(nn.Module):
    """Token ids [B, S] to vectors [B, S, D] in `compute_dtype`: here the activations get their dtype."""

    def __init__(self, vocab_size: int, dim: int, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        self.compute_dtype = compute_dtype
        self.init_std = {"weight": 1.0}

    def forward(self, tokens_BS: Tensor) -> Tensor:
        # FSDP gathers the table in bf16. A byte's row sums thousands of gradients, and in bf16 such a sum stands still:
        # 35 % off after 16k tokens on CPU. So the look-up, and the sum in its backward, are in at least float32.
        weight = self.weight.to(accumulation_dtype(self.weight.dtype))
        return F.embedding(tokens_BS, weight).to(self.compute_dtype)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension (Zhang and Sennrich 2019), in at least float32."""

    init_std = None  # starts at one

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = accumulation_dtype(x.dtype)
        weight = self.weight.to(x.dtype).to(wide)
        return F.rms_norm(x.to(wide), weight.shape, weight, self.eps).to(x.dtype)
