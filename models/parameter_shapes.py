"""Every parameter of a model by name, with its shape, from the config alone: what flops.py counts, one by one."""

from models.config import AttentionConfig, AttentionKind, ModelConfig

Shape = tuple[int, ...]


def parameter_shapes(model: ModelConfig, layers: range | None = None) -> dict[str, Shape]:
    """Names and shapes in the order of `Transformer.named_parameters()`; `layers`: of a stage, None for all.

    The first stage has the embedding, the last one the norm and the head.
    """
    layers = range(model.n_layers) if layers is None else layers
    shapes: dict[str, Shape] = {}
    if layers.start == 0:
        shapes["embedding.weight"] = (model.vocab_size, model.dim)
    for number in layers:
        block = _attention_part(model, number) | _experts_part(model, number)
        shapes |= {f"layers.{number}.{name}": shape for name, shape in block.items()}
    if layers.stop == model.n_layers:
        shapes["norm.weight"] = (model.dim,)
        shapes["head.weight"] = (model.vocab_size, model.dim)
    return shapes


def _attention_part(model: ModelConfig, number: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"attention.norm.weight": (model.dim,)}
    of_kind = {AttentionKind.gqa: _grouped_query, AttentionKind.mla: _multi_head_latent}[model.attention.kind]
    shapes |= {f"attention.mixer.{name}": shape for name, shape in of_kind(model.attention, model.dim).items()}
    shapes["attention.expert_norm.weight"] = (model.dim,)
    if number >= model.n_dense_layers:
        shapes["attention.router.gate.weight"] = (model.moe.n_routed, model.dim)
    return shapes


def _experts_part(model: ModelConfig, number: int) -> dict[str, Shape]:
    moe, dim = model.moe, model.dim
    dense = number < model.n_dense_layers
    width = model.dense_dim if dense else moe.n_shared * moe.expert_dim
    shapes: dict[str, Shape] = {}
    if width:
        shapes |= {"experts.shared.gate.weight": (width, dim), "experts.shared.up.weight": (width, dim)}
        shapes["experts.shared.down.weight"] = (dim, width)
    if not dense:
        shapes["experts.routed.gate_up_E2FD"] = (moe.n_routed, 2, moe.expert_dim, dim)
        shapes["experts.routed.down_EDF"] = (moe.n_routed, dim, moe.expert_dim)
    return shapes


def _grouped_query(a: AttentionConfig, dim: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, n_heads in (("query", a.n_heads), ("key", a.n_kv_heads), ("value", a.n_kv_heads)):
        shapes |= _linear(name, dim, n_heads * a.head_dim, a.bias)
    if a.qk_norm:
        shapes |= {"query_norm.weight": (a.head_dim,), "key_norm.weight": (a.head_dim,)}
    return shapes | _linear("output", a.n_heads * a.head_dim, dim, bias=False)


def _multi_head_latent(a: AttentionConfig, dim: int) -> dict[str, Shape]:
    queries = a.n_heads * a.qk_dim
    if a.q_lora_rank:
        shapes = _linear("query_down", dim, a.q_lora_rank, a.bias) | {"query_norm.weight": (a.q_lora_rank,)}
        shapes |= _linear("query_up", a.q_lora_rank, queries, bias=False)
    else:
        shapes = _linear("query", dim, queries, bias=False)
    shapes |= _linear("kv_down", dim, a.kv_lora_rank + a.qk_rope_dim, a.bias)
    shapes["kv_norm.weight"] = (a.kv_lora_rank,)
    shapes |= _linear("kv_up", a.kv_lora_rank, a.n_heads * (a.qk_nope_dim + a.v_dim), bias=False)
    return shapes | _linear("output", a.n_heads * a.v_dim, dim, a.bias)


def _linear(name: str, in_features: int, out_features: int, bias: bool) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (out_features, in_features)}
    return weight | ({f"{name}.bias": (out_features,)} if bias else {})
