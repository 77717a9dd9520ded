"""An optimizer for a library that puts its own tensors in place of the parameters: moments come after that.

Moments made before would be of whole parameters, on every rank, of what it then does not step.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from parallel.engine import OptimizerMaker


def without_moments(
    make_optimizer: OptimizerMaker, parameters: Sequence[nn.Parameter], n_dims: Sequence[int]
) -> Optimizer:
    """The optimizer over `parameters`, of so many dimensions each (what it sorts them by), with no state."""
    stand_ins = [nn.Parameter(p.new_empty((0,) * n)) for p, n in zip(parameters, n_dims, strict=True)]
    real = dict(zip(stand_ins, parameters, strict=True))
    optimizer = make_optimizer(stand_ins)
    for group in optimizer.param_groups:
        group["params"] = [real[stand_in] for stand_in in group["params"]]
    optimizer.state.clear()
    return optimizer


def add_moments(optimizer: Optimizer, make_optimizer: OptimizerMaker, stepped: Sequence[torch.Tensor]) -> None:
    """Give `optimizer` fresh moments for the tensors that it does step."""
    optimizer.state.clear()
    optimizer.state.update(make_optimizer(stepped).state)  # type: ignore[arg-type]  # AdamW takes any leaf
