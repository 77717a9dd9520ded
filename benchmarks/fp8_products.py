"""Float8 beside bfloat16 on one GPU, in the shapes of moe_5b: what products gain, what quantisation takes of it, and
what is left in layers as they are compiled.

    python benchmarks/fp8_products.py

Of each product (forward, gradient of x, gradient of the weight): ms in bf16; in float8 scaled by rows, with fast and
with full accumulation, and by blocks of 128; then quantisation (compiled) and product together, which a layer's graph
can still better by fusing quantisation with what comes before. `gain` is bf16 over that. Then whole layers, forward and
backward, norms included, of the fewer tokens; and products of 64 experts, each with a multiple of 16 rows.

K in, N out. Medians of five, each of several calls behind a queue, so that no launch is waited for. About a minute.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timed import BF16, Call, compiled_call, took
from torch import Tensor, nn

from models.attention import MultiHeadLatentAttention
from models.config import AttentionConfig, AttentionKind, ModelConfig
from models.feed_forward import FeedForward
from models.fp8_linear import Quantised, multiply_in_fp8, quantise_rows, scaled_product
from models.layers import RMSNorm

TOKENS = (16384, 32768)
SHAPES = {
    "query": (2048, 3072),
    "kv_down": (2048, 576),
    "kv_up": (512, 4096),
    "output": (2048, 2048),
    "shared gate+up": (2048, 5632),
    "shared down": (2816, 2048),
    "dense gate": (2048, 10944),
}
"""Of weights: K, N."""
EXPERTS, ROWS = 64, 98304
EXPERT_SHAPES = {"experts gate+up": (2048, 2816), "experts down": (1408, 2048)}
BLOCK = 128


class Products(NamedTuple):
    """One product several ways."""

    name: str
    flops: float
    plain: Call
    fast: Call
    full: Call
    blocks: Call | None
    quantised: Call
    """Quantisation of both and the fast product."""


def quantiser() -> Callable[[Tensor], Quantised]:
    """Compiled for rows of each width, of any number."""

    def quantise(x: Tensor) -> Quantised:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(x)

    compiled = torch.compile(quantise_rows, fullgraph=True)
    return quantise


def by_columns() -> Callable[[Tensor], Quantised]:
    """The same for columns: what comes out is transposed."""

    @torch.compile(fullgraph=True)
    def quantise(x: Tensor) -> Quantised:
        return quantise_rows(x.t())

    return quantise


def full_product(a: Quantised, b: Quantised) -> Tensor:
    return torch._scaled_mm(a.values_MK, b.values_MK.t(), a.scales_M1, b.scales_M1.t(), out_dtype=BF16)


def block_product(m: int, n: int, k: int, device: str, weight_in_tiles: bool) -> Call:
    """Scales of 1, which cost what others do: blocks of 128 of a row by tiles of 128 × 128, or by blocks of a row."""
    a, b = (torch.zeros(size, k, device=device).to(torch.float8_e4m3fn) for size in (m, n))
    blocks = -(-k // BLOCK)
    of_a = torch.ones(blocks, m, device=device).t()
    if weight_in_tiles:
        of_b = torch.ones(-(-n // BLOCK), blocks, device=device).t()
    else:
        of_b = torch.ones(blocks, n, device=device)
    return partial(torch._scaled_mm, a, b.t(), of_a, of_b, out_dtype=BF16)


def products(tokens: int, k: int, n: int, device: str, rows: Callable, columns: Callable) -> list[Products]:
    """y = x Wᵀ, dx = dy W, dW = dyᵀ x."""
    x, weight, grad = (torch.randn(*s, device=device, dtype=BF16) for s in ((tokens, k), (n, k), (tokens, n)))
    flops = 2.0 * tokens * k * n
    made = []
    for name, plain, a, quantise_a, b, quantise_b in (
        ("forward", lambda: x @ weight.t(), x, rows, weight, rows),
        ("grad x", lambda: grad @ weight, grad, rows, weight, columns),
        ("grad W", lambda: grad.t() @ x, grad, columns, x, columns),
    ):
        qa, qb = quantise_a(a), quantise_b(b)

        def quantised(a=a, b=b, quantise_a=quantise_a, quantise_b=quantise_b) -> Tensor:
            return scaled_product(quantise_a(a), quantise_b(b), BF16)

        (m, inner), n_out = qa.values_MK.shape, len(qb.values_MK)
        in_tiles = name != "grad W"
        made.append(
            Products(
                name,
                flops,
                plain,
                partial(scaled_product, qa, qb, BF16),
                partial(full_product, qa, qb),
                block_product(m, n_out, inner, device, in_tiles),
                quantised,
            )
        )
    return made


def expert_rows(n_rows: int, experts: int, device: str) -> tuple[int, Tensor]:
    """Their number, and the end of each expert's (int32). Loads are random, each a multiple of 16."""
    generator = torch.Generator().manual_seed(0)
    loads = torch.multinomial(torch.rand(experts, generator=generator) + 1, n_rows, True, generator=generator)
    loads = loads.bincount(minlength=experts)
    loads = loads + -loads % 16
    return int(loads.sum()), loads.cumsum(0).to(device, torch.int32)


def expert_products(k: int, n: int, n_rows: int, experts: int, device: str, rows: Callable) -> list[Products]:
    """The grouped ones: forward, and the gradient of rows, which is the same with K and N exchanged. bf16 has as many
    rows as float8."""
    total, ends = expert_rows(n_rows, experts, device)
    made = []
    for name, width, outputs in (("forward", k, n), ("grad x", n, k)):
        x = torch.randn(total, width, device=device, dtype=BF16)
        # Of grad x the weight lies as it does for forward: its columns are quantised, so that it is read transposed.
        weight = torch.randn(experts, *((outputs, width) if name == "forward" else (width, outputs)), dtype=BF16)
        weight = weight.to(device)
        of_rows = weight if name == "forward" else weight.transpose(1, 2)

        def multiply(qx: Quantised, qw: Quantised, fast: bool, ends=ends) -> Tensor:
            return torch._scaled_grouped_mm(
                qx.values_MK,
                qw.values_MK.transpose(1, 2),
                qx.scales_M1.squeeze(-1),
                qw.scales_M1.squeeze(-1),
                offs=ends,
                out_dtype=BF16,
                use_fast_accum=fast,
            )

        def quantised(x=x, of_rows=of_rows, multiply=multiply) -> Tensor:
            return multiply(rows(x), rows(of_rows), True)

        qx, qw = rows(x), rows(of_rows)
        made.append(
            Products(
                name,
                2.0 * total * width * outputs,
                partial(F.grouped_mm, x, of_rows.transpose(1, 2), offs=ends),
                partial(multiply, qx, qw, True),
                partial(multiply, qx, qw, False),
                None,
                quantised,
            )
        )
    return made


class Normed(nn.Module):
    """A norm and what reads it, as they are compiled."""

    def __init__(self, dim: int, part: nn.Module, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.part, self.call = RMSNorm(dim, 1e-6), part, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.norm(x))


def layers(device: str, model: ModelConfig) -> dict[str, Callable[[bool], nn.Module]]:
    """By name: in float8 or not."""

    def feed_forward(hidden: int, in_fp8: bool) -> nn.Module:
        part = FeedForward(model.dim, hidden, 1)
        return prepared(Normed(model.dim, part, part), in_fp8)

    def attention(in_fp8: bool) -> nn.Module:
        part = MultiHeadLatentAttention(model)

        def call(x: Tensor) -> Tensor:
            queries, rope, keys_and_values = part.project(x)
            width = model.attention.n_heads * model.attention.v_dim
            mixed = keys_and_values[..., :width] * queries[..., :width] + rope.mean()
            return part.output(mixed)

        return prepared(Normed(model.dim, part, call), in_fp8)

    def prepared(module: nn.Module, in_fp8: bool) -> nn.Module:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        if in_fp8:
            multiply_in_fp8(module)
        return module.to(device, BF16)

    shared = model.moe.n_shared * model.moe.expert_dim
    return {
        f"shared experts ({shared})": partial(feed_forward, shared),
        f"dense feed-forward ({model.dense_dim})": partial(feed_forward, model.dense_dim),
        "attention's projections": attention,
    }


def rated(ms: float | None, flops: float) -> str:
    return f"{'–':>15}" if ms is None else f"{ms:8.3f} {flops / ms / 1e9:6.0f}"


def print_products(name: str, tokens: int, made: list[Products], device: str) -> None:
    for one in made:
        plain, fast, full, blocks, both = (
            took(call, device) for call in (one.plain, one.fast, one.full, one.blocks, one.quantised)
        )
        gain = f"{plain / both:5.2f}" if plain and both else "    –"
        columns = " ".join(rated(ms, one.flops) for ms in (plain, fast, full, blocks, both))
        print(f"{name:16} {tokens:6} {one.name:8} {columns} {gain}", flush=True)


def main(device: str, tokens: tuple[int, ...], shrink: int = 1) -> None:
    """Print the tables; `shrink` divides widths, to see on a CPU that all of it runs."""
    torch._dynamo.config.recompile_limit = 64  # one for each width
    model = ModelConfig(
        dim=2048 // shrink,
        dense_dim=10944 // shrink // 16 * 16,
        attention=AttentionConfig(
            kind=AttentionKind.mla, n_heads=16, kv_lora_rank=512 // shrink, qk_nope_dim=128, qk_rope_dim=64, v_dim=128
        ),
    )
    model.moe.n_shared, model.moe.expert_dim = 2, 1408 // shrink
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU: no times", f"torch {torch.__version__}")
    heads = ("bf16", "fp8 rows", "fp8 rows, full", "fp8 blocks", "with quantising")
    print(f"{'ms, TFLOP/s':32} " + " ".join(f"{head:>15}" for head in heads) + "  gain")
    rows, columns = quantiser(), by_columns()
    for n_tokens in tokens:
        for name, (k, n) in SHAPES.items():
            sizes = (size // shrink // 16 * 16 for size in (k, n))
            print_products(name, n_tokens, products(n_tokens, *sizes, device, rows, columns), device)
    for name, (k, n) in EXPERT_SHAPES.items():
        n_rows, experts = (ROWS, EXPERTS) if shrink == 1 else (512, 8)
        print_products(name, n_rows, expert_products(k // shrink, n // shrink, n_rows, experts, device, rows), device)
    print(f"\n{'forward and backward, ms':40} {'bf16':>8} {'fp8':>8}  gain")
    x = torch.randn(tokens[0], model.dim, device=device, dtype=BF16, requires_grad=True)
    for name, make in layers(device, model).items():
        plain, fp8 = (took(compiled_call(make(in_fp8), x), device) for in_fp8 in (False, True))
        if plain and fp8:
            print(f"{name:32} {tokens[0]:7} {plain:8.3f} {fp8:8.3f} {plain / fp8:5.2f}", flush=True)


if __name__ == "__main__":
    main("cuda", TOKENS)
