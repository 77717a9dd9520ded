"""transformers in true float64: its own casts to float32 lifted, without a line of its code copied.

It computes norms, router, softmax and rotary angles in float32 whatever the model's dtype is. Inside this mode each
torch call that names float32 names float64 instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float32IsFloat64(TorchFunctionMode):
    """A context in which to build a model and to run it, forward and backward."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func` with float64 for float32, and `.double()` for `.float()`."""
        lifted = [torch.float64 if a is torch.float32 else a for a in args]
        named = {name: torch.float64 if a is torch.float32 else a for name, a in (kwargs or {}).items()}
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*lifted, **named)
