"""AdamW (Loshchilov and Hutter 2019) and its learning rate."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from train.config import Moments, OptimConfig, Schedule
from train.one_pass_adamw import OnePassAdamW


def build_optimizer(parameters: Sequence[nn.Parameter], optim: OptimConfig) -> Optimizer:
    """AdamW over `parameters`, its moments allocated at once: a resume fills them before the first step."""
    # Every weight matrix decays, norms' vectors do not. A part has as many dimensions as the whole, so layouts agree.
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if optim.one_pass:
        moments = torch.bfloat16 if optim.moments is Moments.bfloat16 else None
        return OnePassAdamW(groups, optim.lr, (optim.beta1, optim.beta2), optim.eps, moments, optim.halves)
    fused = parameters[0].is_cuda
    optimizer = AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=fused)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of optimizer step `step` (the first is 1): linear warm-up, then `optim.schedule` down to the last step.

    WSD holds the peak and decays linearly over the last `decay_fraction` of the job (Hu et al. 2024).
    """
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    floor = optim.lr * optim.min_lr_ratio
    match optim.schedule:
        case Schedule.constant:
            return optim.lr
        case Schedule.cosine:
            done = (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps)
            return floor + (optim.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case Schedule.wsd:
            decay_steps = max(1, round(optim.decay_fraction * total_steps))
            left = min(1.0, max(0, total_steps - step) / decay_steps)
            return floor + (optim.lr - floor) * left
