"""The config.json of qwen3_moe in the words that the other architectures share, and back.

num_experts (num_local_experts)         n_routed_experts
mlp_only_layers, decoder_sparse_step    first_k_dense_replace
nothing, for it is always so            ALWAYS
"""

from collections.abc import Mapping
from typing import Any

from models.config import ConfigError

ALWAYS = {
    "use_qk_norm": True,
    "n_shared_experts": 0,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "partial_rotary_factor": 1.0,
}


def to_qwen3(shared: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model that is one (`hf_architecture.architecture_of`)."""
    config = {key: value for key, value in shared.items() if key not in ALWAYS}
    n_dense, n_experts = config.pop("first_k_dense_replace"), config.pop("n_routed_experts")
    rope = {key: value for key, value in config["rope_parameters"].items() if key not in ALWAYS}
    return config | {
        "num_experts": n_experts,
        "mlp_only_layers": list(range(n_dense)),
        "decoder_sparse_step": 1,
        "use_sliding_window": False,
        "sliding_window": None,
        "rope_parameters": rope,
    }


def from_qwen3(published: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Raises:
    ConfigError: for what no model of ours can do.
    """
    dense = published.get("mlp_only_layers") or []
    if not isinstance(dense, list) or dense != list(range(len(dense))):
        raise ConfigError(f"{file}: this model cannot do mlp_only_layers={dense} (dense layers come first here)")
    if (step := published.get("decoder_sparse_step", 1)) != 1:
        raise ConfigError(
            f"{file}: this model cannot do decoder_sparse_step={step} (all layers after the dense ones have experts)"
        )
    if published.get("attention_bias"):
        raise ConfigError(f"{file}: this model cannot do attention_bias=true (the output has none in gqa here)")
    if published.get("use_sliding_window"):
        raise ConfigError(f"{file}: this model cannot do use_sliding_window=true (attention sees all before)")
    experts = published.get("num_experts", published.get("num_local_experts"))
    if experts is None:
        raise ConfigError(f"{file} has no num_experts: name the config.json of a {published.get('model_type')}")
    return {**published, **ALWAYS, "n_routed_experts": experts, "first_k_dense_replace": len(dense)}
