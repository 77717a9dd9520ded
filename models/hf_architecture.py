"""Which published architecture says a model of ours, and what stands in the way where none does.

    mla, sigmoid   deepseek_v3   DeepseekV3ForCausalLM
    mla, softmax   deepseek_v2   DeepseekV2ForCausalLM
    gqa, sigmoid   glm4_moe      Glm4MoeForCausalLM
    gqa, softmax   qwen3_moe     Qwen3MoeForCausalLM

The function is that of Hugging Face transformers 5 (there: modeling_deepseek_v3.py, modeling_deepseek_v2.py,
modeling_glm4_moe.py, modeling_qwen3_moe.py). What an architecture cannot say is refused, never approximated.
"""

from enum import Enum

from models.config import AttentionKind, ConfigError, GroupScore, ModelConfig, MoEConfig, ScoreFunction


class Architecture(Enum):
    """`model_type` in config.json."""

    deepseek_v2 = "deepseek_v2"
    deepseek_v3 = "deepseek_v3"
    glm4_moe = "glm4_moe"
    qwen3_moe = "qwen3_moe"


KINDS = {
    Architecture.deepseek_v2: (AttentionKind.mla, ScoreFunction.softmax, GroupScore.best),
    Architecture.deepseek_v3: (AttentionKind.mla, ScoreFunction.sigmoid, GroupScore.two_best),
    Architecture.glm4_moe: (AttentionKind.gqa, ScoreFunction.sigmoid, GroupScore.two_best),
    Architecture.qwen3_moe: (AttentionKind.gqa, ScoreFunction.softmax, GroupScore.best),
}
CLASS_NAMES = {
    Architecture.deepseek_v2: "DeepseekV2ForCausalLM",
    Architecture.deepseek_v3: "DeepseekV3ForCausalLM",
    Architecture.glm4_moe: "Glm4MoeForCausalLM",
    Architecture.qwen3_moe: "Qwen3MoeForCausalLM",
}
WITHOUT_BIAS = {Architecture.deepseek_v2, Architecture.qwen3_moe}
"""Those whose routers choose by their scores alone."""


def architecture_of(model: ModelConfig) -> Architecture:
    """The architecture that says `model`.

    Raises:
        ConfigError: if none does, naming the key that stands in the way.
    """
    kind, score = model.attention.kind, model.moe.score
    architecture = next(a for a, kinds in KINDS.items() if kinds[:2] == (kind, score))
    if architecture is Architecture.qwen3_moe:
        _check_qwen3(model)
    _check_attention(model, architecture)
    if model.n_dense_layers < model.n_layers:
        _check_moe(model.moe, architecture)
    return architecture


def _check_attention(model: ModelConfig, architecture: Architecture) -> None:
    attention, yarn = model.attention, model.attention.yarn
    if architecture is Architecture.deepseek_v2 and model.dim % attention.n_heads:
        raise ConfigError(
            f"model.dim={model.dim}: deepseek_v2 wants a multiple of model.attention.n_heads={attention.n_heads}"
        )
    if yarn.factor == 1:
        return
    if attention.kind is AttentionKind.gqa and yarn.mscale_all_dim:
        raise ConfigError(
            f"model.attention.yarn.mscale_all_dim={yarn.mscale_all_dim}: {architecture.value} scales no scores; set it "
            "to 0"
        )
    if not yarn.mscale_all_dim and yarn.mscale != 1:
        raise ConfigError(
            f"model.attention.yarn.mscale={yarn.mscale}: without model.attention.yarn.mscale_all_dim, transformers "
            "takes 1; set it to 1"
        )
    if yarn.mscale_all_dim and not yarn.mscale:
        raise ConfigError("model.attention.yarn.mscale=0: transformers takes 0 for 1; set it above 0")


def _check_qwen3(model: ModelConfig) -> None:
    """What the others have a choice in."""
    attention, moe = model.attention, model.moe
    wanted: dict[str, tuple[object, object]] = {
        "attention.qk_norm": (attention.qk_norm, True),
        "attention.rope_fraction": (attention.rope_fraction, 1.0),
        "attention.bias": (attention.bias, False),  # theirs is on the output too
    }
    if model.n_dense_layers < model.n_layers:
        limited = moe.groups_per_token < moe.n_groups
        wanted |= {
            "moe.n_shared": (moe.n_shared, 0),
            "moe.route_scale": (moe.route_scale, 1.0),
            "moe.groups_per_token": (moe.groups_per_token, moe.n_groups if limited else moe.groups_per_token),
        }
    for key, (value, theirs) in wanted.items():
        if value != theirs:
            said = [str(one).lower() for one in (value, theirs)]
            raise ConfigError(
                f"model.{key}={said[0]}: grouped-query attention with scores by softmax is qwen3_moe in transformers, "
                f"and has {said[1]}; set it so, or model.moe.score=sigmoid (glm4_moe)"
            )


def _check_moe(moe: MoEConfig, architecture: Architecture) -> None:
    name, group_score = architecture.value, KINDS[architecture][2]
    if moe.n_shared == 0 and architecture is not Architecture.qwen3_moe:
        raise ConfigError(f"model.moe.n_shared=0: {name} always has shared experts; set it to 1 or more")
    if moe.capacity_factor is not None:
        raise ConfigError(f"model.moe.capacity_factor={moe.capacity_factor}: {name} drops no tokens; set it to null")
    if moe.groups_per_token < moe.n_groups and moe.group_score is not group_score:
        raise ConfigError(
            f"model.moe.group_score={moe.group_score.value}: {name} ranks otherwise; set it to {group_score.value}"
        )
    if architecture is Architecture.deepseek_v2 and moe.normalise_weights:
        raise ConfigError(
            "model.moe.normalise_weights=true: deepseek_v2 in transformers does not divide the weights; set it to false"
        )
    if architecture not in WITHOUT_BIAS and moe.n_routed < 2:
        raise ConfigError(f"model.moe.n_routed={moe.n_routed}: {name} ranks groups by two experts; set it to 2 or more")
