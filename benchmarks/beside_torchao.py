"""What torchao has instead of parts of a step, beside ours and torch's: optimizers whose moments are narrow, and
products in float8."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from fp8_products import EXPERT_SHAPES, EXPERTS, ROWS, Normed, expert_rows, layers
from timed import BF16, compiled_call, gradient_call, tell
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from models.config import ModelConfig
from models.feed_forward import FeedForward
from parallel.compile import measuring
from parallel.gradient_norm import clip_coefficient
from train.one_pass_adamw import OnePassAdamW

TENSORS, SHAPE = 64, (5632, 2816)
"""As many as a model of 1.0e9 parameters has: a rank's share of the experts."""
BETAS = (0.9, 0.95)


def optimizer_rows(device: str, shrink: int = 1) -> None:
    """The global norm, clipping by it, and the update. Bytes a parameter: what stays of parameter, gradient and state,
    and of a copy in bfloat16 where there is one."""
    shape = tuple(size // shrink for size in SHAPE)
    n_parameters = TENSORS * math.prod(shape)

    def row(
        name: str,
        build: Callable[[Iterable[nn.Parameter]], Optimizer],
        parameters: torch.dtype = torch.float32,
        gradients: torch.dtype = BF16,
        gpu_only: bool = False,
    ) -> None:
        before = torch.cuda.memory_allocated() if device == "cuda" else 0

        def call() -> Callable[[], object]:
            tensors = [nn.Parameter(torch.randn(shape, device=device, dtype=parameters) * 0.02) for _ in range(TENSORS)]
            optimizer = build(tensors)
            for tensor in tensors:
                tensor.grad_dtype = None  # of any
                tensor.grad = torch.randn(shape, device=device, dtype=gradients)
            if not isinstance(optimizer, OnePassAdamW):
                return partial(clip_and_step, tensors, optimizer)
            if gradients is BF16:
                optimizer.round_into({tensor: torch.empty_like(tensor, dtype=BF16) for tensor in tensors}, {})
            return partial(one_pass, tensors, optimizer)

        def bytes_each() -> str:
            there = torch.cuda.memory_allocated() - before if device == "cuda" else float("nan")
            return f"{there / n_parameters:.1f} bytes a parameter"

        tell(f"optimizer: {name}", call, device, gpu_only, bytes_each)

    def clip_and_step(tensors: list[nn.Parameter], optimizer: Optimizer) -> None:
        nn.utils.clip_grad_norm_(tensors, 1.0, foreach=True)
        optimizer.step()

    norms_of = measuring(True, torch.device(device))

    def one_pass(tensors: list[nn.Parameter], optimizer: OnePassAdamW) -> None:
        norms = torch.stack(norms_of([tensor.grad for tensor in tensors if tensor.grad is not None]))
        optimizer.step_scaled(clip_coefficient(norms.square().sum().sqrt(), 1.0), None)

    def ours(moments: torch.dtype | None) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
        return lambda tensors: OnePassAdamW([{"params": tensors, "weight_decay": 0.1}], 3e-4, BETAS, 1e-8, moments)

    def torchao(name: str, **settings: bool) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
        def build(tensors: Iterable[nn.Parameter]) -> Optimizer:
            from torchao import optim

            return getattr(optim, name)(tensors, lr=3e-4, betas=BETAS, weight_decay=0.1, **settings)

        return build

    wide = torch.float32
    row("ours", ours(None), gradients=wide)
    row("ours, bf16 moments, gradients, copy", ours(BF16))
    fused = partial(AdamW, lr=3e-4, betas=BETAS, weight_decay=0.1, fused=True)
    row("torch, fused, clipped", fused, gradients=wide)
    for name in ("AdamW8bit", "AdamWFp8"):
        row(f"torchao {name}, bf16 gradients", torchao(name), gpu_only=True)
    rounded = torchao("AdamW8bit", bf16_stochastic_round=True)
    row("torchao AdamW8bit, bf16, stochastic", rounded, parameters=BF16, gpu_only=True)


def fp8_rows(model: ModelConfig, tokens: int, device: str) -> None:
    """Feed-forwards behind their norm, compiled, forward and backward."""
    x_TD = torch.randn(tokens, model.dim, device=device, dtype=BF16, requires_grad=True)

    def torchao(hidden: int, recipe: str) -> Callable[[], object]:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        part = FeedForward(model.dim, hidden, 1)
        for name, linear in list(part.named_children()):  # torchao replaces torch's own
            outputs, inputs = linear.weight.shape
            setattr(part, name, nn.Linear(inputs, outputs, bias=False))
        module = Normed(model.dim, part, part).to(device, BF16)
        nn.init.ones_(module.norm.weight)
        convert_to_float8_training(module, config=Float8LinearConfig.from_recipe_name(recipe))
        return compiled_call(module, x_TD)

    ours = [(int(name.split("(")[1].rstrip(")")), make) for name, make in layers(device, model).items() if "(" in name]
    for hidden, make in ours:
        for kind, in_fp8 in (("bf16", False), ("ours", True)):
            tell(f"fp8 {hidden}: {kind}", lambda make=make, in_fp8=in_fp8: compiled_call(make(in_fp8), x_TD), device)
    # After ours: it changes how torch.compile writes minimum and maximum, for the whole process.
    for hidden, _ in ours:
        for recipe in ("rowwise", "rowwise_with_gw_hp"):
            tell(f"fp8 {hidden}: torchao {recipe}", partial(torchao, hidden, recipe), device, gpu_only=True)


def expert_rows_in_fp8(device: str, shrink: int = 1) -> None:
    """One grouped product, forward and backward, quantisation of rows, gradients and weights included."""
    n_rows, experts = (ROWS, EXPERTS) if shrink == 1 else (512, 8)
    total, ends = expert_rows(n_rows, experts, device)
    for name, shape in EXPERT_SHAPES.items():
        k, n = (size // shrink for size in shape)
        x_ND = torch.randn(total, k, device=device, dtype=BF16, requires_grad=True)
        weight = (torch.randn(experts, n, k, device=device, dtype=BF16) * k**-0.5).requires_grad_()

        def plain(x: Tensor = x_ND, weight: Tensor = weight) -> Callable[[], object]:
            return gradient_call(lambda: (F.grouped_mm(x, weight.transpose(1, 2), offs=ends),), (x, weight))

        def torchao(x: Tensor = x_ND, weight: Tensor = weight) -> Callable[[], object]:
            from torchao.prototype.moe_training import _to_fp8_rowwise_then_scaled_grouped_mm as multiply

            def product() -> tuple[Tensor]:
                return (multiply(x, weight.transpose(1, 2), ends, pad_token_groups_for_grouped_mm=False),)

            return gradient_call(product, (x, weight))

        tell(f"{name}: bf16", plain, device)
        tell(f"{name}: torchao, fp8 rows", torchao, device, gpu_only=True)
