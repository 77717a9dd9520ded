"""What liger-kernel has instead of parts of a layer, beside ours and torch's: forward and backward.

T tokens, D model width, V vocabulary; B batch, S sequence, H heads, d their width, R of it turned.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timed import BF16, compiled_call, gradient_call, module_call, tell
from torch import Tensor, nn
from torch.func import functional_call

from models.config import AttentionKind, LossBackend, ModelConfig
from models.feed_forward import FeedForward
from models.head import Head
from models.layers import RMSNorm
from models.rope import RotaryTable, rotary_table, rotate

LossOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Hidden states [T, D], weight [V, D] and targets [T] to a sum of losses."""


def loss_rows(model: ModelConfig, tokens: int, device: str) -> None:
    """The head and its cross-entropy; then each one's error, of the gradients of hidden states and of the weight, in
    fewer tokens and chunks as many: |g - g in float64| / |g in float64|."""

    def case(n_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x_TD = torch.randn(n_tokens, model.dim, generator=generator).to(device, BF16).requires_grad_()
        weight_VD = torch.randn(model.vocab_size, model.dim, generator=generator) * model.dim**-0.5
        targets_T = torch.randint(model.vocab_size, (n_tokens,), generator=generator).to(device)
        return x_TD, weight_VD.to(device, BF16).requires_grad_(), targets_T

    n_chunks = max(1, tokens // model.loss_chunk_size)
    few = case(max(n_chunks, tokens // 8))

    def gradients(loss_of: LossOf, wide: bool = False) -> list[Tensor]:
        x_TD, weight_VD = (t.detach().to(torch.float64 if wide else BF16).requires_grad_() for t in few[:2])
        found = torch.autograd.grad(loss_of(x_TD, weight_VD, few[2]) / len(few[2]), (x_TD, weight_VD))
        return [gradient.double() for gradient in found]

    def by_torch(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x_TD, weight_VD).to(torch.float32), targets_T, reduction="sum")

    def in_float64(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x_TD, weight_VD), targets_T, reduction="sum")

    def ours(backend: LossBackend) -> LossOf:
        def loss_of(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
            with torch.device("meta"):
                head = Head(model.dim, model.vocab_size, -(-len(x_TD) // n_chunks), backend)
            return functional_call(head, {"weight": weight_VD}, (x_TD.unsqueeze(0), targets_T.unsqueeze(0)))

        return loss_of

    def liger(sums: torch.dtype | None) -> Callable[[], LossOf]:
        def made() -> LossOf:
            from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

            def loss_of(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
                settings = (None, None, -100, 0.0, 0.0, "sum", None, False, sums)
                return LigerFusedLinearCrossEntropyFunction.apply(x_TD, weight_VD, targets_T, *settings)[0]

            return loss_of

        return made

    exact = gradients(in_float64, wide=True)

    def row(name: str, made: Callable[[], LossOf], gpu_only: bool = False) -> None:
        def call() -> Callable[[], object]:
            x_TD, weight_VD, targets_T = case(tokens)
            loss_of = made()
            return gradient_call(lambda: (loss_of(x_TD, weight_VD, targets_T) / tokens,), (x_TD, weight_VD))

        def errors() -> str:
            pairs = zip(gradients(made()), exact, strict=True)
            return "error " + " ".join(f"{((g - e).norm() / e.norm()).item():.1e}" for g, e in pairs)

        tell(f"loss: {name}", call, device, gpu_only, errors)

    row("ours, kernel", lambda: ours(LossBackend.auto), gpu_only=True)
    row("ours, torch's operators", lambda: ours(LossBackend.torch))
    row("torch, compiled, all logits", lambda: torch.compile(by_torch, dynamic=False))
    row("liger", liger(None), gpu_only=True)
    row("liger, sums in float32", liger(torch.float32), gpu_only=True)


class LigerFeedForward(FeedForward):
    """With what stands between the products by liger's kernel."""

    def widen(self, x: Tensor) -> Tensor:
        """See FeedForward."""
        from liger_kernel.ops import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply(self.gate(x), self.up(x))


def swiglu_rows(model: ModelConfig, tokens: int, device: str) -> None:
    """Whole feed-forwards, products included: what liger's kernel takes in is what products made."""
    x_TD = torch.randn(tokens, model.dim, device=device, dtype=BF16, requires_grad=True)

    def part(kind: type[FeedForward], hidden: int) -> FeedForward:
        made = kind(model.dim, hidden, 1)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.02)
        return made.to(device, BF16)

    for hidden in (model.dense_dim, model.moe.n_shared * model.moe.expert_dim):
        name = f"swiglu {hidden}:"
        tell(f"{name} ours, compiled", lambda n=hidden: compiled_call(part(FeedForward, n), x_TD), device)
        tell(f"{name} ours, as it is", lambda n=hidden: module_call(part(FeedForward, n), x_TD), device)
        tell(f"{name} liger", lambda n=hidden: module_call(part(LigerFeedForward, n), x_TD), device, gpu_only=True)


class AddedAndNormed(nn.Module):
    """The residual stream, and its norm."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both sums."""
        residual = x + y
        return residual, self.norm(residual)


def norm_rows(model: ModelConfig, tokens: int, device: str) -> None:
    """Alone, and with the addition before it. liger's by its mode in which all is in float32, as ours."""
    x, y = (torch.randn(tokens, model.dim, device=device, dtype=BF16, requires_grad=True) for _ in range(2))
    norm = RMSNorm(model.dim, model.norm_eps).to(device, BF16)
    nn.init.ones_(norm.weight)
    weight, eps = norm.weight, model.norm_eps

    def added(compiled: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[], object]:
        return gradient_call(lambda: compiled(x, y), (x, y, weight))

    def liger_alone() -> Callable[[], object]:
        from liger_kernel.ops import LigerRMSNormFunction

        return gradient_call(lambda: (LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma", False),), (x, weight))

    def liger_added() -> Callable[[], object]:
        from liger_kernel.ops import LigerFusedAddRMSNormFunction

        def both() -> tuple[Tensor, Tensor]:
            normed, residual = LigerFusedAddRMSNormFunction.apply(x, y, weight, eps, 0.0, "gemma", False)
            return residual, normed

        return gradient_call(both, (x, y, weight))

    def by_torch(residual: Tensor) -> Tensor:
        return F.rms_norm(residual, weight.shape, weight, eps)

    tell("norm: ours, compiled", lambda: compiled_call(norm, x), device)
    tell("norm: F.rms_norm", lambda: gradient_call(lambda: (by_torch(x),), (x, weight)), device)
    tell("norm: liger", liger_alone, device, gpu_only=True)
    both = AddedAndNormed(norm)
    tell("add, norm: ours, compiled", lambda: added(torch.compile(both, fullgraph=True, dynamic=False)), device)
    tell("add, norm: F.rms_norm", lambda: added(lambda x, y: (x + y, by_torch(x + y))), device)
    tell("add, norm: liger", liger_added, device, gpu_only=True)


def rope_rows(model: ModelConfig, tokens: int, device: str) -> None:
    """Of queries and keys as the model has them: of MLA, the last R of each query head, and one key for all; and as
    grouped-query attention of the same heads has them, all of 128."""
    length = min(tokens, model.max_sequence_length)
    table = rotary_table(length, model.attention, BF16, torch.device(device))

    def ours(q_BHSd: Tensor, k_BGSd: Tensor, table: RotaryTable) -> tuple[Tensor, Tensor]:
        return rotate(q_BHSd, table), rotate(k_BGSd, table)

    def liger(q_BHSd: Tensor, k_BGSd: Tensor, table: RotaryTable) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops import LigerRopeFunction

        width = 2 * table.cos_SR.shape[1]
        return LigerRopeFunction.apply(q_BHSd, k_BGSd, table.cos_SR, table.sin_SR, None, 1, width)

    def rows(name: str, n_keys: int, width: int, before: int, table: RotaryTable) -> None:
        def made(turn: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], object]:
            shape = (tokens // length, length)
            q, k = (
                torch.randn(*shape, heads, each, device=device, dtype=BF16, requires_grad=True)
                for heads, each in ((model.attention.n_heads, before + width), (n_keys, width))
            )
            return gradient_call(lambda: turn(q[..., before:].transpose(1, 2), k.transpose(1, 2), table), (q, k))

        tell(f"rope {name}: ours, compiled", lambda: made(torch.compile(ours, dynamic=False)), device)
        tell(f"rope {name}: liger", lambda: made(liger), device, gpu_only=True)

    a = model.attention
    if a.kind is AttentionKind.mla:
        rows("mla", 1, a.rope_dim, a.qk_nope_dim, table)
    double = RotaryTable(*(side.repeat(1, max(1, 128 // a.rope_dim)) for side in table))
    rows("gqa", max(1, a.n_heads // 4), 2 * double.cos_SR.shape[1], 0, double)
