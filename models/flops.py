"""Parameters and FLOPs of a model in closed form, from its config alone.

FLOPs per token, forward and backward: 6 x P_active + attention, where P_active are the weights that multiply a token
(top_k routed and all shared experts, router, dense feed-forward, attention projections, head; not the embedding
look-up), and attention is 6 x H x (d_qk + d_v) x S per layer without, half of that with the causal discount.
Without it the figure is what PaLM (arXiv 2204.02311, appendix B) calls model FLOPs; DeepSeek and Megatron discount.
What is counted is the model as configured: pairs that capacity drops, and attention that stops at documents' ends, are
not taken off.
"""

from dataclasses import dataclass

from models.config import AttentionConfig, AttentionKind, ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters: all that exist, and those that one token's forward multiplies."""

    total: int
    active: int


def count_parameters(model: ModelConfig) -> ParameterCount:
    """Count `model`'s parameters (not its balancing-bias buffers) in closed form."""
    moe = model.moe
    n_moe_layers = model.n_layers - model.n_dense_layers
    attention_matrices, attention_vectors = _attention_parameters(model.attention, model.dim)
    one_expert = 3 * model.dim * moe.expert_dim
    router = model.dim * moe.n_routed

    every_layer = model.n_layers * attention_matrices + model.n_dense_layers * 3 * model.dim * model.dense_dim
    every_layer += n_moe_layers * (router + moe.n_shared * one_expert)
    head = model.dim * model.vocab_size
    active = every_layer + n_moe_layers * moe.top_k * one_expert + head

    vectors = model.n_layers * (attention_vectors + 2 * model.dim) + model.dim
    embedding = model.vocab_size * model.dim
    total = every_layer + n_moe_layers * moe.n_routed * one_expert + head + embedding + vectors
    return ParameterCount(total=total, active=active)


def flops_per_token(model: ModelConfig, sequence_length: int, *, causal: bool = True) -> int:
    """Forward and backward FLOPs of one token in a sequence of `sequence_length`.

    `causal` halves attention, for only the lower triangle is needed (`perf/mfu`); without it the figure is PaLM's
    (`perf/mfu_palm`), and what FlopCounterMode sees of an attention that computes the whole square.
    """
    return sum(flops_by_category(model, sequence_length, causal=causal).values())


def flops_by_category(model: ModelConfig, sequence_length: int, *, causal: bool = True) -> dict[str, int]:
    """`flops_per_token` by what multiplies: routed experts ("expert_gemm"), every other weight ("dense_gemm"; shared
    experts among them), and queries, keys and values with each other ("attention")."""
    a = model.attention
    square = 6 * a.n_heads * (a.qk_dim + a.value_dim) * sequence_length * model.n_layers
    routed = (model.n_layers - model.n_dense_layers) * model.moe.top_k * 3 * model.dim * model.moe.expert_dim
    return {
        "dense_gemm": 6 * (count_parameters(model).active - routed),
        "expert_gemm": 6 * routed,
        "attention": square // 2 if causal else square,
    }


def routed_parameters(model: ModelConfig) -> int:
    """Parameters of all routed experts: the ones that expert-parallel ranks divide."""
    return (model.n_layers - model.n_dense_layers) * model.moe.n_routed * 3 * model.dim * model.moe.expert_dim


def _attention_parameters(a: AttentionConfig, dim: int) -> tuple[int, int]:
    """Weights of one attention's matrices, and of the norms and biases inside it, which multiply nothing of note."""
    output = a.n_heads * a.value_dim * dim
    if a.kind is AttentionKind.gqa:
        projected = a.head_dim * (a.n_heads + 2 * a.n_kv_heads)
        return dim * projected + output, 2 * a.head_dim * a.qk_norm + projected * a.bias
    queries = a.n_heads * a.qk_dim
    query = dim * a.q_lora_rank + a.q_lora_rank * queries if a.q_lora_rank else dim * queries
    compressed = a.kv_lora_rank + a.qk_rope_dim
    expand = a.kv_lora_rank * a.n_heads * (a.qk_nope_dim + a.v_dim)
    biases = (a.q_lora_rank + compressed + dim) * a.bias
    return query + dim * compressed + expand + output, a.q_lora_rank + a.kv_lora_rank + biases
