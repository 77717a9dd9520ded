"""config.json and ModelConfig: there and back, published values, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from conf.compose import compose
from conf.keys import values
from models.config import ConfigError, ModelConfig
from models.hf_architecture import architecture_of
from models.hf_config import (
    IN_ATTENTION,
    NOT_THE_FUNCTION,
    check_same_function,
    function_values,
    read_config,
    rope_interleaved,
    write_config,
)
from tests.models.test_hf_oracle import CASES, GLM, QWEN, V2, V3, YARN, Case, attention, moe

YARN_40 = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN_40 | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}
"""As deepseek-ai/DeepSeek-V2-Lite publishes it."""
V3_671B: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN_40 | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
"""As deepseek-ai/DeepSeek-V3 publishes it, but for its quantization_config."""
QWEN3_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""As Qwen/Qwen3-30B-A3B publishes it: the layers of model=moe_768, with twice the heads."""
YARN_PLAIN = replace(YARN, mscale=1.0, mscale_all_dim=0.0)
FP8_BLOCKS = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_there_and_back(case: Case) -> None:
    written = json.loads(json.dumps(write_config(case.model, "float32")))
    assert read_config(written, "config.json") == function_values(case.model)
    check_same_function(case.model, written, "config.json")


def test_every_key_of_ours_is_written_or_left_out_for_a_reason() -> None:
    limited = moe(attention(V3, yarn=YARN), n_groups=4, groups_per_token=2)
    said = {*function_values(limited), *function_values(GLM)}
    assert {key for key, _ in values(ModelConfig())} == said | NOT_THE_FUNCTION.keys() | {"moe.capacity_factor"}
    assert not said & NOT_THE_FUNCTION.keys()
    assert set(IN_ATTENTION) == {V3.attention.kind, GLM.attention.kind}


@pytest.mark.parametrize(("name", "published"), [("dsv2_lite", V2_LITE), ("dsv3", V3_671B)])
def test_published_models_are_ours(name: str, published: dict[str, Any]) -> None:
    model = compose([f"model={name}"]).config.model
    model.check()
    check_same_function(model, published, "config.json")
    assert rope_interleaved(published)


def test_the_layers_of_moe_768_are_qwens() -> None:
    """Read as ours they differ in what the file in conf/model says: heads, layers, vocabulary and the base of RoPE."""
    ours, theirs = function_values(compose(["model=moe_768"]).config.model), read_config(QWEN3_30B, "config.json")
    sizes = {"vocab_size", "n_layers", "n_dense_layers", "attention.n_heads", "attention.rope_theta"}
    assert {key for key, value in theirs.items() if ours[key] != value} == sizes


@pytest.mark.parametrize("model", [attention(V3, yarn=YARN), attention(GLM, rope_fraction=0.5), V2, QWEN])
def test_both_spellings_of_rope_say_the_same(model: ModelConfig) -> None:
    written = write_config(model, "float32")
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    new = {key: value for key, value in written.items() if key not in ("rope_scaling", "rope_theta")}
    new.pop("partial_rotary_factor", None)
    assert read_config(old, "old") == read_config(new, "new") == function_values(model)
    kind = type(transformers.AutoConfig.for_model(written["model_type"]))
    spelt = [kind.from_dict(config).rope_parameters for config in (written, old, new)]
    for name, value in written["rope_parameters"].items():
        assert [parameters[name] for parameters in spelt] == [value] * 3


def test_transformers_has_nothing_to_say_about_what_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    for model in (attention(V3, yarn=YARN), V2, GLM, QWEN):
        (tmp_path / "config.json").write_text(json.dumps(write_config(model, "float32", end_of_document=0)))
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        assert (config.dtype, config.eos_token_id) == (
            transformers.AutoConfig.for_model("llama", dtype="float32").dtype,
            0,
        )
    assert caplog.messages == []


def test_the_first_difference_is_named_and_all_are_mended() -> None:
    published = write_config(attention(V3, rope_theta=1e6), "float32")
    with pytest.raises(ConfigError) as refusal:
        check_same_function(V3, published, "F/config.json")
    assert str(refusal.value) == (
        "model.attention.rope_theta=10000.0, and F/config.json says 1000000.0: set model.attention.rope_theta=1000000.0"
    )
    tiny = compose(["model=tiny"]).config.model
    published = write_config(
        moe(attention(replace(tiny, dim=96), bias=True, yarn=YARN_PLAIN), route_scale=2.0), "float32"
    )
    with pytest.raises(ConfigError) as refusal:
        check_same_function(tiny, published, "F/config.json")
    said, words = str(refusal.value).split(": set ")
    assert said == "model.dim=64, and F/config.json says 96"
    check_same_function(compose(["model=tiny", *words.split()]).config.model, published, "F/config.json")


@pytest.mark.parametrize(
    ("published", "changes", "said"),
    [
        (V3_671B, {"model_type": "llama"}, "model_type=llama is not known here: deepseek_v2, deepseek_v3, glm4_moe, q"),
        (QWEN3_30B, {"mlp_only_layers": [1]}, "cannot do mlp_only_layers=[1] (dense layers come first here)"),
        (QWEN3_30B, {"decoder_sparse_step": 2}, "cannot do decoder_sparse_step=2"),
        (QWEN3_30B, {"attention_bias": True}, "cannot do attention_bias=true (the output has none in gqa here)"),
        (QWEN3_30B, {"sliding_window": 4096}, "cannot do sliding_window=4096"),
        (QWEN3_30B, {"num_experts": None}, "config.json has no num_experts"),
        (V3_671B, {"quantization_config": FP8_BLOCKS}, "cannot do quantization_config (its weights are quantised: con"),
        (V3_671B, {"tie_word_embeddings": True}, "cannot do tie_word_embeddings=true (the head has weights of its own"),
        (V2_LITE, {"mlp_bias": True}, "cannot do mlp_bias=true"),
        (V2_LITE, {"hidden_act": "gelu"}, "cannot do hidden_act=gelu"),
        (V2_LITE, {"moe_layer_freq": 2}, "cannot do moe_layer_freq=2"),
        (V2_LITE, {"norm_topk_prob": True}, "cannot do norm_topk_prob=true (transformers does not divide"),
        (V2_LITE, {"rope_interleave": False}, "cannot do rope_interleave=false"),
        (V2_LITE, {"scoring_func": "sigmoid"}, "cannot do scoring_func=sigmoid"),
        (V2_LITE, {"topk_method": "noaux_tc"}, "cannot do topk_method=noaux_tc: greedy, group_limited_greedy"),
        (V3_671B, {"scoring_func": "softmax"}, "cannot do scoring_func=softmax"),
        (V3_671B, {"topk_method": "greedy"}, "cannot do topk_method=greedy"),
        (V3_671B, {"num_key_value_heads": 8}, "cannot do num_key_value_heads=8 beside num_attention_heads=128"),
        (V3_671B, {"n_shared_experts": None}, "n_shared_experts is missing or 0"),
        (V3_671B, {"hidden_size": None}, "config.json has no hidden_size, which this model must know"),
        (V3_671B, {"hidden_size": "7168"}, "hidden_size='7168' is no int"),
        (V3_671B, {"attention_bias": 1}, "attention_bias=1 is no bool"),
        (V3_671B, {"num_hidden_layers": True}, "num_hidden_layers=True is no int"),
        (V3_671B, {"rope_scaling": {"type": "linear", "factor": 4.0}}, "cannot do rope_type=linear (there are default"),
        (V3_671B, {"rope_scaling": YARN_40 | {"mscale_all_dim": 1.0}}, "mscale_all_dim without mscale"),
        (V3_671B, {"rope_scaling": YARN_40 | {"attention_factor": 1.0}}, "cannot do attention_factor=1.0"),
        (
            V3_671B,
            {"rope_scaling": YARN_40 | {"factor": 1.0, "attention_factor": 1.2}},
            "cannot do attention_factor=1.2",
        ),
        (V3_671B, {"original_max_position_embeddings": 77}, "two values of original_max_position_embeddings"),
        (V3_671B, {"attention_dropout": 0.1}, "cannot do attention_dropout=0.1"),
        (V3_671B, {"rope_scaling": YARN_40 | {"truncate": False}}, "cannot do truncate=false"),
        (V3_671B, {"rope_scaling": YARN_40 | {"factor": None}}, "factor=None is no number"),
        (V3_671B, {"rope_scaling": YARN_40 | {"factor": 0.5}}, "cannot do factor=0.5 (YaRN makes a context longer)"),
        (V3_671B, {"rope_scaling": YARN_40 | {"beta_fast": math.nan}}, "beta_fast=nan is no number"),
        (V3_671B, {"q_lora_rank": "1536"}, "q_lora_rank='1536' is no int"),
        (V3_671B, {"rope_scaling": "yarn"}, "rope_parameters is no table of values"),
        (V3_671B, {"partial_rotary_factor": 0.5}, "cannot do partial_rotary_factor=0.5 in latent attention"),
    ],
)
def test_what_we_cannot_do_is_refused_by_name(published: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_config(published | changes, "config.json")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (moe(GLM, score=V2.moe.score), "model.attention.qk_norm=false: grouped-query attention with scores by softmax"),
        (moe(QWEN, n_shared=1), "model.moe.n_shared=1: grouped-query attention with scores by softmax is qwen3_moe in"),
        (moe(QWEN, route_scale=2.0), "model.moe.route_scale=2.0: grouped-query attention"),
        (moe(QWEN, n_groups=4, groups_per_token=2), "model.moe.groups_per_token=2: grouped-query attention"),
        (attention(QWEN, bias=True), "model.attention.bias=true: grouped-query attention"),
        (attention(QWEN, rope_fraction=0.5), "model.attention.rope_fraction=0.5: grouped-query attention"),
        (moe(QWEN, capacity_factor=1.5), "model.moe.capacity_factor=1.5: qwen3_moe drops no tokens; set it to null"),
        (moe(V3, n_shared=0), "model.moe.n_shared=0: deepseek_v3 always has shared experts; set it to 1 or more"),
        (moe(V3, capacity_factor=1.5), "model.moe.capacity_factor=1.5: deepseek_v3 drops no tokens; set it to null"),
        (moe(V2, normalise_weights=True), "model.moe.normalise_weights=true: deepseek_v2"),
        (
            moe(V2, n_groups=4, groups_per_token=2),
            "model.moe.group_score=two_best: deepseek_v2 ranks otherwise; set it",
        ),
        (moe(GLM, n_routed=1, top_k=1), "model.moe.n_routed=1: glm4_moe ranks groups by two experts"),
        (replace(V2, dim=30), "model.dim=30: deepseek_v2 wants a multiple of model.attention.n_heads=4"),
        (
            attention(GLM, yarn=YARN),
            "model.attention.yarn.mscale_all_dim=0.707: glm4_moe scales no scores; set it to 0",
        ),
        (attention(V3, yarn=replace(YARN, mscale_all_dim=0.0)), "model.attention.yarn.mscale=0.707: without"),
        (attention(V3, yarn=replace(YARN, mscale=0.0)), "model.attention.yarn.mscale=0: transformers takes 0 for 1"),
    ],
)
def test_what_no_architecture_says_is_refused_by_key(model: ModelConfig, said: str) -> None:
    model.check()
    with pytest.raises(ConfigError) as refusal:
        architecture_of(model)
    assert str(refusal.value).startswith(said)


@pytest.mark.parametrize("model", [V3, V2])
def test_experts_do_not_matter_without_a_layer_of_them(model: ModelConfig) -> None:
    dense = replace(moe(model, n_shared=0, capacity_factor=1.0, normalise_weights=True), n_dense_layers=3)
    check_same_function(dense, write_config(dense, "float32"), "config.json")


def test_deepseek_v2_has_neighbouring_pairs_whatever_its_file_says() -> None:
    assert rope_interleaved(V2_LITE | {"rope_interleave": None})
    assert not rope_interleaved(V3_671B | {"rope_interleave": None})
