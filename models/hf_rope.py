"""Rotary values in a published config.json, in their two spellings, and YaRN's as transformers 5 understands them.

rope_parameters   transformers 5: all in one place, rope_theta and partial_rotary_factor among them
rope_scaling      before: null or YaRN's, with rope_theta and partial_rotary_factor beside it at the top
"""

import math
from collections.abc import Mapping
from typing import Any

from models.config import AttentionConfig, AttentionKind, ConfigError, YarnConfig
from models.yarn import amplitude

PUBLISHED_THETA = 10000.0
"""Where a config.json says none."""
GLM_FRACTION = 0.5
"""Where a config.json of glm4_moe says none."""
YARN_KEYS = {
    "factor": "factor",
    "original_length": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}


def write_rope(attention: AttentionConfig) -> dict[str, Any]:
    """The rotary part of config.json, in both spellings: readers of either find the same."""
    partial: dict[str, Any] = {}
    if attention.kind is AttentionKind.gqa:
        partial = {"partial_rotary_factor": attention.rope_fraction}
    yarn: dict[str, Any] = {}
    if attention.yarn.factor != 1:
        yarn = {"rope_type": "yarn"} | {
            theirs: getattr(attention.yarn, ours)
            for ours, theirs in YARN_KEYS.items()
            # Without it, and it alone, all readers scale the rotated part by the factor's whole growth.
            if attention.yarn.mscale_all_dim or not ours.startswith("mscale")
        }
    theta = {"rope_theta": attention.rope_theta}
    return {
        "rope_parameters": {"rope_type": "default"} | theta | partial | yarn,
        "rope_scaling": yarn | {"type": "yarn"} if yarn else None,
        **theta,
        **partial,
    }


def read_rope(published: Mapping[str, Any], kind: AttentionKind, file: str) -> dict[str, Any]:
    """The values of our `attention.*` that turn heads as `published`, the contents of `file`, says.

    Raises:
        ConfigError: for rotary embeddings that this model lacks.
    """
    rope = published.get("rope_scaling") or published.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"{file}: rope_parameters is no table of values")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "yarn"):
        raise ConfigError(f"{file}: this model cannot do rope_type={rope_type} (there are default and yarn)")
    theta = rope.get("rope_theta", published.get("rope_theta", PUBLISHED_THETA))
    whole = GLM_FRACTION if kind is AttentionKind.gqa else 1.0
    fraction = rope.get("partial_rotary_factor", published.get("partial_rotary_factor", whole))
    values = {"attention.rope_theta": _float("rope_theta", theta, file)}
    if kind is AttentionKind.gqa:
        values["attention.rope_fraction"] = _float("partial_rotary_factor", fraction, file)
    elif fraction != 1:
        raise ConfigError(f"{file}: this model cannot do partial_rotary_factor={fraction} in latent attention")
    yarn = _read_yarn(published, rope, file) if rope_type == "yarn" else {"factor": 1.0}
    return values | {f"attention.yarn.{name}": value for name, value in yarn.items()}


def _read_yarn(published: Mapping[str, Any], rope: Mapping[str, Any], file: str) -> dict[str, Any]:
    if rope.get("truncate", True) is not True:
        raise ConfigError(f"{file}: this model cannot do truncate=false (YaRN's range in whole pairs)")
    default = YarnConfig()
    given = {theirs: rope.get(theirs) for theirs in YARN_KEYS.values()}
    beside = published.get("original_max_position_embeddings")
    if beside is not None and beside != given["original_max_position_embeddings"]:
        raise ConfigError(f"{file}: two values of original_max_position_embeddings, and readers differ in which counts")
    if given["original_max_position_embeddings"] is None:
        given["original_max_position_embeddings"] = published.get("max_position_embeddings")
    for theirs in ("beta_fast", "beta_slow"):
        given[theirs] = given[theirs] or getattr(default, theirs)
    if given["mscale_all_dim"] and not given["mscale"]:
        raise ConfigError(f"{file}: mscale_all_dim without mscale: readers disagree what that is")
    if not given["mscale_all_dim"]:  # transformers then takes no account of mscale either
        given |= {"mscale": 1.0, "mscale_all_dim": 0.0}
    numbers = {ours: _float(theirs, given[theirs], file) for ours, theirs in YARN_KEYS.items()}
    original_length = int(numbers.pop("original_length"))
    yarn = YarnConfig(original_length=original_length, **numbers)
    if yarn.factor < 1:
        raise ConfigError(f"{file}: this model cannot do factor={yarn.factor} (YaRN makes a context longer)")
    factor = rope.get("attention_factor")
    if factor is not None and not math.isclose(_float("attention_factor", factor, file), amplitude(yarn), rel_tol=1e-9):
        raise ConfigError(
            f"{file}: this model cannot do attention_factor={factor}; from factor and mscale it is {amplitude(yarn)}"
        )
    return vars(yarn) if yarn.factor != 1 else {"factor": 1.0}


def _float(key: str, value: Any, file: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{file}: {key}={value} is no number")
    return float(value)
