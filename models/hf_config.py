"""A published config.json and our ModelConfig: which values of the two say the same function."""

from collections.abc import Mapping
from enum import Enum
from operator import attrgetter
from typing import Any

from models.config import AttentionKind, ConfigError, GroupScore, ModelConfig
from models.hf_architecture import CLASS_NAMES, KINDS, Architecture, architecture_of
from models.hf_qwen3 import from_qwen3, to_qwen3
from models.hf_rope import read_rope, write_rope

# Our key to theirs, where both hold the same number.
EVERYWHERE = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace",
    "norm_eps": "rms_norm_eps",
    "attention.n_heads": "num_attention_heads",
    "attention.bias": "attention_bias",
}
IN_DENSE_LAYERS = {"dense_dim": "intermediate_size"}
IN_MOE_LAYERS = {
    "moe.n_routed": "n_routed_experts",
    "moe.top_k": "num_experts_per_tok",
    "moe.n_shared": "n_shared_experts",
    "moe.expert_dim": "moe_intermediate_size",
    "moe.route_scale": "routed_scaling_factor",
}
IN_ATTENTION = {
    AttentionKind.mla: {
        "attention.kv_lora_rank": "kv_lora_rank",
        "attention.qk_nope_dim": "qk_nope_head_dim",
        "attention.qk_rope_dim": "qk_rope_head_dim",
        "attention.v_dim": "v_head_dim",
    },
    AttentionKind.gqa: {
        "attention.n_kv_heads": "num_key_value_heads",
        "attention.head_dim": "head_dim",
        "attention.qk_norm": "use_qk_norm",
    },
}
MAY_BE_ABSENT = {"attention_bias": False, "use_qk_norm": False}

NOT_THE_FUNCTION = {
    "name": "a label",
    "max_sequence_length": "written as max_position_embeddings; at any length the function is the same",
    "expert_backend": "how it is computed, not what",
    "row_backend": "how it is computed, not what",
    "loss_backend": "how it is computed, not what",
    "loss_chunk_size": "how it is computed, not what",
    "init_from": "where weights come from",
    "moe.routing": "balanced is refused by export, and is no model's",
    "moe.balance": "moves the biases in training; where they are is among the weights",
    "moe.bias_update_rate": "moves the biases in training",
    "moe.sequence_loss_weight": "in training only",
    "moe.batch_loss_weight": "in training only",
    "moe.z_loss_weight": "in training only",
}
"""Our keys that config.json need not say, and why. `moe.capacity_factor` is refused; all others are said."""

CANNOT = {
    "tie_word_embeddings": ((None, False), "the head has weights of its own here"),
    "mlp_bias": ((None, False), "feed-forwards have no bias here"),
    "hidden_act": ((None, "silu"), "feed-forwards are SwiGLU here"),
    "moe_layer_freq": ((None, 1), "all layers after the dense ones have experts here"),
    "attention_dropout": ((None, 0), "nothing is dropped at random here"),
    "sliding_window": ((None,), "attention reaches over the whole context here"),
    "quantization_config": ((None,), "its weights are quantised: convert them to bfloat16 and remove the key"),
}
"""Keys of config.json, the values of which this model can do, and why no other."""


def write_config(model: ModelConfig, dtype: str, end_of_document: int | None = None) -> dict[str, Any]:
    """config.json for `model`, with weights of `dtype` ("float32").

    Rotary values stand twice, where transformers 5 and where older readers look for them. `end_of_document` is the
    token that ends generation; None for none.

    Raises:
        ConfigError: if no architecture says `model`.
    """
    architecture = architecture_of(model)
    values = function_values(model)
    limited = model.moe.groups_per_token < model.moe.n_groups
    config: dict[str, Any] = {
        "architectures": [CLASS_NAMES[architecture]],
        "model_type": architecture.value,
        "dtype": dtype,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": end_of_document,
        "pad_token_id": None,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "max_position_embeddings": model.max_sequence_length,
        # Sizes that no layer uses are written too: a reader need not know that.
        **{theirs: attrgetter(ours)(model) for ours, theirs in (EVERYWHERE | IN_DENSE_LAYERS | IN_MOE_LAYERS).items()},
        **{theirs: values[ours] for ours, theirs in IN_ATTENTION[model.attention.kind].items()},
        "n_group": model.moe.n_groups if limited else 1,
        "topk_group": model.moe.groups_per_token if limited else 1,
        "norm_topk_prob": model.moe.normalise_weights and architecture is not Architecture.deepseek_v2,
        **write_rope(model.attention),
    }
    if architecture is Architecture.qwen3_moe:
        return to_qwen3(config)
    if architecture is Architecture.glm4_moe:
        return config | {"num_nextn_predict_layers": 0}
    config |= {
        "num_key_value_heads": model.attention.n_heads,
        "q_lora_rank": model.attention.q_lora_rank or None,
        "moe_layer_freq": 1,
        "scoring_func": model.moe.score.value,
    }
    if architecture is Architecture.deepseek_v2:
        return config | {"mlp_bias": False, "topk_method": "group_limited_greedy" if limited else "greedy"}
    return config | {"rope_interleave": True, "topk_method": "noaux_tc", "num_nextn_predict_layers": 0}


def read_config(published: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The values that our model must have to be the one that `published`, the contents of `file`, describes.

    Returns:
        Our keys (without `model.`) with their values, as `function_values` gives them of a ModelConfig.

    Raises:
        ConfigError: naming the first thing that no model of ours can do, or that is missing.
    """
    try:
        architecture = Architecture(published.get("model_type"))
    except ValueError:
        known = ", ".join(a.value for a in Architecture)
        raise ConfigError(f"{file}: model_type={published.get('model_type')} is not known here: {known}") from None
    if architecture is Architecture.qwen3_moe:
        published = from_qwen3(published, file)
    _refuse_what_we_cannot(published, architecture, file)
    kind, score, group_score = KINDS[architecture]
    dense = _number(published, "first_k_dense_replace", 0, file)
    layers = _number(published, "num_hidden_layers", 0, file)
    plain, default = _plain_keys(kind, dense > 0, dense < layers), ModelConfig()
    values: dict[str, Any] = {"attention.kind": kind, "moe.score": score}
    values |= {ours: _number(published, theirs, attrgetter(ours)(default), file) for ours, theirs in plain.items()}
    if kind is AttentionKind.mla:
        direct = published.get("q_lora_rank") is None
        values["attention.q_lora_rank"] = 0 if direct else _number(published, "q_lora_rank", 0, file)
    if dense < layers:
        values |= _read_groups(published, architecture, group_score, file)
        v2 = architecture is Architecture.deepseek_v2  # there it is false, or was refused
        values["moe.normalise_weights"] = not v2 and _number(published, "norm_topk_prob", True, file)
    return values | read_rope(published, kind, file)


def rope_interleaved(published: Mapping[str, Any]) -> bool:
    """Whether the rotary dimensions of the weights lie in neighbouring pairs, as DeepSeek's do, or in two halves."""
    architecture = Architecture(published["model_type"])
    if architecture is Architecture.deepseek_v3:
        return bool(published.get("rope_interleave", True))
    return architecture is Architecture.deepseek_v2


def function_values(model: ModelConfig) -> dict[str, Any]:
    """The values of `model` that make its function, by key (without `model.`); what no layer uses is left out.

    Groups that limit nothing are one group, and YaRN by a factor of 1 is that factor alone.
    """
    moe = model.n_dense_layers < model.n_layers
    values: dict[str, Any] = {"attention.kind": model.attention.kind, "moe.score": model.moe.score}
    plain = _plain_keys(model.attention.kind, model.n_dense_layers > 0, moe)
    values |= {ours: attrgetter(ours)(model) for ours in plain}
    if model.attention.kind is AttentionKind.mla:
        values["attention.q_lora_rank"] = model.attention.q_lora_rank
    if moe:
        limited = model.moe.groups_per_token < model.moe.n_groups
        values["moe.normalise_weights"] = model.moe.normalise_weights
        values["moe.n_groups"] = model.moe.n_groups if limited else 1
        values["moe.groups_per_token"] = model.moe.groups_per_token if limited else 1
        if limited:
            values["moe.group_score"] = model.moe.group_score
    values["attention.rope_theta"] = model.attention.rope_theta
    if model.attention.kind is AttentionKind.gqa:
        values["attention.rope_fraction"] = model.attention.rope_fraction
    yarn = model.attention.yarn
    names = list(vars(yarn)) if yarn.factor != 1 else ["factor"]
    return values | {f"attention.yarn.{name}": getattr(yarn, name) for name in names}


def check_same_function(model: ModelConfig, published: Mapping[str, Any], file: str) -> None:
    """Refuse a `model` that is not the one that `published`, the contents of `file`, describes.

    Raises:
        ConfigError: naming the first value that differs, and all words that would make them the same.
    """
    ours, theirs = function_values(model), read_config(published, file)
    wrong = [key for key, value in theirs.items() if ours.get(key, attrgetter(key)(model)) != value]
    if wrong:
        first, words = wrong[0], " ".join(f"model.{key}={word(theirs[key])}" for key in wrong)
        here = word(attrgetter(first)(model))
        raise ConfigError(f"model.{first}={here}, and {file} says {word(theirs[first])}: set {words}")
    architecture_of(model)


def _plain_keys(kind: AttentionKind, dense: bool, moe: bool) -> dict[str, str]:
    """Our keys to theirs, of the layers that there are."""
    return EVERYWHERE | IN_ATTENTION[kind] | (IN_DENSE_LAYERS if dense else {}) | (IN_MOE_LAYERS if moe else {})


def _refuse_what_we_cannot(published: Mapping[str, Any], architecture: Architecture, file: str) -> None:
    cannot = dict(CANNOT)
    if architecture is Architecture.deepseek_v2:
        cannot["scoring_func"] = ((None, "softmax"), "deepseek_v2 scores by softmax")
        cannot["norm_topk_prob"] = ((None, False), "transformers does not divide the weights of deepseek_v2")
        cannot["rope_interleave"] = ((None, True), "transformers takes deepseek_v2's pairs as neighbours")
    elif architecture is Architecture.deepseek_v3:
        cannot["scoring_func"] = ((None, "sigmoid"), "deepseek_v3 scores by sigmoid")
        cannot["topk_method"] = ((None, "noaux_tc"), "deepseek_v3 chooses by biased scores")
    for key, (possible, reason) in cannot.items():
        value = published.get(key)
        if value not in possible:
            shown = "" if isinstance(value, Mapping) else f"={word(value)}"
            raise ConfigError(f"{file}: this model cannot do {key}{shown} ({reason})")
    sparse = published.get("first_k_dense_replace") != published.get("num_hidden_layers")
    if sparse and architecture is not Architecture.qwen3_moe and not published.get("n_shared_experts"):
        raise ConfigError(
            f"{file}: n_shared_experts is missing or 0, and transformers' {architecture.value} needs some"
        )
    heads, kv_heads = published.get("num_attention_heads"), published.get("num_key_value_heads")
    if KINDS[architecture][0] is AttentionKind.mla and kv_heads not in (None, heads):
        raise ConfigError(
            f"{file}: this model cannot do num_key_value_heads={kv_heads} beside num_attention_heads={heads} "
            "(latent attention gives every head a key)"
        )


def _read_groups(
    published: Mapping[str, Any], architecture: Architecture, group_score: GroupScore, file: str
) -> dict[str, Any]:
    if architecture is Architecture.deepseek_v2:
        method = published.get("topk_method", "greedy")
        if method not in ("greedy", "group_limited_greedy"):
            raise ConfigError(f"{file}: this model cannot do topk_method={word(method)}: greedy, group_limited_greedy")
        if method == "greedy":
            return {"moe.n_groups": 1, "moe.groups_per_token": 1}
    groups, chosen = (_number(published, key, 1, file) for key in ("n_group", "topk_group"))
    if chosen >= groups:
        return {"moe.n_groups": 1, "moe.groups_per_token": 1}
    return {"moe.n_groups": groups, "moe.groups_per_token": chosen, "moe.group_score": group_score}


def _number(published: Mapping[str, Any], key: str, like: Any, file: str) -> Any:
    """`published[key]`, of the type of `like`."""
    value = published.get(key, MAY_BE_ABSENT.get(key))
    if value is None:
        raise ConfigError(f"{file} has no {key}, which this model must know")
    kinds = {bool: (bool,), int: (int,), float: (int, float)}[type(like)]
    fits = isinstance(value, kinds) and isinstance(value, bool) == isinstance(like, bool)
    if not fits:
        raise ConfigError(f"{file}: {key}={value!r} is no {type(like).__name__}")
    return float(value) if isinstance(like, float) else value


def word(value: Any) -> str:
    """As on a command line."""
    if isinstance(value, Enum):
        return str(value.value)
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
