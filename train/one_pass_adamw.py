"""AdamW that clips, leaves a step out, and rounds the masters, in the pass over memory that updates."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import record_function

from train.adamw_update import Hyper, scalars, update
from train.trace.chrome import ONE_PASS

Update = Callable[[Tensor, Tensor, Tensor, Tensor, Hyper, Tensor, int, Tensor | None, Tensor | None], None]


class OnePassAdamW(Optimizer):
    """Over plain, contiguous tensors, betas alike in all groups; state `step`, `exp_avg` and `exp_avg_sq` as torch's
    AdamW has them. Noise follows from the step and a tensor's number here: another one's shard, or bucket, has the
    same, and copies of a tensor are rounded alike."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        moments: torch.dtype | None,
        halves: bool = False,
    ) -> None:
        """`moments`: their dtype; None is the parameters'. `halves`: see OnePass."""
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self._step = torch.zeros((), device=parameters[0].device)
        """Of all of them."""
        self.halves = halves
        self._copies: Mapping[nn.Parameter, Tensor] = {}
        self._lows: Mapping[nn.Parameter, Tensor] = {}
        self._update = _update_for(parameters[0])
        for parameter in parameters:
            parameter.grad_dtype = None  # of any: it is read once, and widened then
            self.state[parameter] = {
                "step": self._step,
                "exp_avg": torch.zeros_like(parameter, dtype=moments, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=moments, requires_grad=False),
            }

    def round_into(self, copies: Mapping[nn.Parameter, Tensor], lows: Mapping[nn.Parameter, Tensor]) -> None:
        """See OnePass; the tensors of both are contiguous."""
        self._copies, self._lows = copies, lows

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Without clipping."""
        self.step_scaled(None, None)

    @torch.no_grad()
    def step_scaled(self, clip: Tensor | None, left_out: Tensor | None) -> None:
        """Multiply gradients by `clip` and move everything by them; nothing, to the bit, if `left_out`. Both are read
        on the device, and by the kernels nobody waits for them."""
        self._step += 1.0 if left_out is None else (~left_out).float()
        with nullcontext() if self._update is update else record_function(ONE_PASS):
            self._move(clip, left_out)

    def _move(self, clip: Tensor | None, left_out: Tensor | None) -> None:
        known: Tensor | None = None
        number = 0
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            hyper = Hyper(group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
            if known is None:
                known = scalars(hyper, self._step, clip, left_out)  # betas are those of all groups
            for parameter in group["params"]:
                state = self.state[parameter]
                assert parameter.grad is not None
                self._update(
                    parameter,
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    parameter.grad,
                    hyper,
                    known,
                    number,
                    self._copies.get(parameter),
                    self._lows.get(parameter),
                )
                number += 1


def _update_for(parameter: Tensor) -> Update:
    if not parameter.is_cuda or parameter.dtype is not torch.float32:
        return update
    from train import adamw_kernel  # Triton comes with torch for CUDA alone

    return adamw_kernel.update
