"""Our tensors' published names and rows: by hand, and against transformers' models of full size, without storage."""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conf.compose import compose
from models.config import ModelConfig
from models.flops import count_parameters
from models.hf import PublishedNames, PublishedTensor, rope_rows
from tests.models.test_hf_config import V2_LITE, V3_671B
from tests.models.test_hf_oracle import GLM, V2, V3, attention, published_tensors
from train.init_from import wanted_tensors


def shapes_by_published_name(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    names = PublishedNames(model, interleaved=True)
    found = {name: (names.find(name.removeprefix("model.")), t.shape) for name, t in wanted_tensors(model).items()}
    return {there.name: tuple(shape) for there, shape in found.values() if there}


@cache  # DeepSeek-V3 has 45 thousand
def shapes_of_preset(name: str) -> dict[str, tuple[int, ...]]:
    return shapes_by_published_name(compose([f"model={name}"]).config.model)


@pytest.mark.parametrize(
    ("name", "published", "parameters", "biases"),
    [("dsv2_lite", V2_LITE, 15_706_484_224, 0), ("dsv3", V3_671B, 671_026_404_352, 58 * 256)],
)
def test_published_models_have_the_same_tensors(
    name: str, published: dict[str, Any], parameters: int, biases: int
) -> None:
    model = compose([f"model={name}"]).config.model
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**published))
    expected = {name: tuple(tensor.shape) for name, tensor in published_tensors(theirs, lambda t: t.detach()).items()}
    ours = shapes_of_preset(name)
    assert ours == expected
    assert count_parameters(model).total == parameters
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == parameters + biases


def test_names_are_those_on_the_hub() -> None:
    """A few of each kind, written down from the hub's model.safetensors.index.json."""
    v2, v3 = shapes_of_preset("dsv2_lite"), shapes_of_preset("dsv3")
    assert v2["model.layers.0.mlp.gate_proj.weight"] == (10944, 2048)
    assert v2["model.layers.26.mlp.experts.63.down_proj.weight"] == (2048, 1408)
    assert v2["model.layers.1.mlp.shared_experts.up_proj.weight"] == (2816, 2048)
    assert v2["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"] == (576, 2048)
    assert v2["model.layers.1.self_attn.q_proj.weight"] == (3072, 2048)
    assert "model.layers.1.mlp.gate.e_score_correction_bias" not in v2
    assert v3["model.layers.3.mlp.gate.e_score_correction_bias"] == (256,)
    assert v3["model.layers.60.self_attn.q_b_proj.weight"] == (24576, 1536)
    assert v3["model.layers.0.self_attn.q_a_layernorm.weight"] == (1536,)
    assert v3["lm_head.weight"] == v3["model.embed_tokens.weight"] == (129280, 7168)
    glm = shapes_by_published_name(attention(GLM, bias=True, qk_norm=True))
    assert glm["model.layers.2.self_attn.q_norm.weight"] == (16,)
    assert glm["model.layers.2.self_attn.k_proj.bias"] == (32,)
    assert "model.layers.2.self_attn.o_proj.bias" not in glm


def test_rope_rows_by_hand() -> None:
    """Two heads of 1 plain and 6 rotary rows, theirs (x0, x1), (x2, x3), (x4, x5): our halves are evens and odds."""
    rows = rope_rows(n_heads=2, before=1, rope_dim=6)
    assert rows.tolist() == [0, 1, 3, 5, 2, 4, 6, 7, 8, 10, 12, 9, 11, 13]
    theirs = torch.arange(14.0).unsqueeze(1).expand(-1, 3)
    assert torch.equal(PublishedTensor("q_proj", rows).to_theirs(theirs[rows]), theirs)
    assert PublishedTensor("o_proj", None).to_theirs(theirs) is theirs


def test_only_deepseek_permutes() -> None:
    permuted = {"layers.1.attention.mixer.query_up.weight", "layers.1.attention.mixer.kv_down.bias"}
    model = attention(V3, bias=True)
    for names, expected in ((PublishedNames(model, True), permuted), (PublishedNames(model, False), set())):
        for name in (*permuted, "layers.1.attention.mixer.kv_up.weight", "layers.1.attention.norm.weight"):
            there = names.find(name)
            assert there is not None
            assert (there.rows is not None) == (name in expected)
    glm = PublishedNames(GLM, True).find("layers.1.attention.mixer.query.weight")
    assert glm == PublishedTensor("model.layers.1.self_attn.q_proj.weight", None)


def test_a_name_that_is_not_the_models_is_an_error() -> None:
    names = PublishedNames(V2, True)
    assert names.find("layers.1.attention.router.expert_bias_E") is None
    for name in ("layers.1.attention.mixer.sink", "layers.1.experts.routed.3.gate_EFD", "extra.weight"):
        with pytest.raises(KeyError):
            names.find(name)
