"""Our model against Hugging Face transformers: the same weights, the same experts, logits and gradients.

`python -m tests.models.test_hf_oracle` from the repository prints the largest errors as a markdown table.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, Glm4MoeForCausalLM, Qwen3MoeForCausalLM

from models.config import (
    AttentionConfig,
    AttentionKind,
    Balance,
    GroupScore,
    ModelConfig,
    MoEConfig,
    ScoreFunction,
    YarnConfig,
)
from models.hf import PublishedNames
from models.hf_config import function_values, read_config, rope_interleaved, write_config
from models.initialise import initialise
from models.router import Router
from models.transformer import Transformer
from parallel.logical_state import model_state
from tests.models.transformers_in_float64 import Float32IsFloat64

CLASSES = {
    "deepseek_v2": DeepseekV2ForCausalLM,
    "deepseek_v3": DeepseekV3ForCausalLM,
    "glm4_moe": Glm4MoeForCausalLM,
    "qwen3_moe": Qwen3MoeForCausalLM,
}
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "dim": 32,
    "n_layers": 3,
    "n_dense_layers": 1,
    "dense_dim": 48,
    "max_sequence_length": 64,
}
MLA = AttentionConfig(
    kind=AttentionKind.mla, n_heads=4, q_lora_rank=12, kv_lora_rank=16, qk_nope_dim=8, qk_rope_dim=8, v_dim=12
)
GQA = AttentionConfig(kind=AttentionKind.gqa, n_heads=4, n_kv_heads=2, head_dim=16)
SIGMOID = MoEConfig(n_routed=8, top_k=3, n_shared=1, expert_dim=20, route_scale=2.5)
SOFTMAX = replace(SIGMOID, score=ScoreFunction.softmax, normalise_weights=False, balance=Balance.none, n_shared=2)
YARN = YarnConfig(factor=4.0, original_length=16, mscale=0.707, mscale_all_dim=0.707)
V3 = ModelConfig(**SIZES, attention=MLA, moe=SIGMOID)
V2 = ModelConfig(**SIZES, attention=MLA, moe=SOFTMAX)
GLM = ModelConfig(**SIZES, attention=GQA, moe=SIGMOID)
QWEN = ModelConfig(
    **SIZES,
    attention=replace(GQA, qk_norm=True),
    moe=replace(SOFTMAX, n_shared=0, route_scale=1.0, normalise_weights=True),
)


@dataclass(frozen=True)
class Case:
    """A model of ours, and what its config.json says otherwise."""

    options: str
    model: ModelConfig
    published: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """To be read in a list of tests."""
        return f"{write_config(self.model, 'float32')['model_type']}, {self.options}"


def attention(model: ModelConfig, **changes: Any) -> ModelConfig:
    return replace(model, attention=replace(model.attention, **changes))


def moe(model: ModelConfig, **changes: Any) -> ModelConfig:
    return replace(model, moe=replace(model.moe, **changes))


SEEDS = (0, 1)
"""Of weights and tokens; each case has both."""
CASES = [
    Case("q_lora, no limit on groups", V3),
    Case("direct query", attention(V3, q_lora_rank=0)),
    Case("groups 2 of 4", moe(V3, n_groups=4, groups_per_token=2)),
    Case("weights not normalised, route scale 1", moe(V3, normalise_weights=False, route_scale=1.0)),
    Case("attention bias", attention(V3, bias=True)),
    Case("YaRN x4, mscale 0.707", attention(V3, yarn=YARN)),
    Case("YaRN x4, mscale 1.5 over 0.5", attention(V3, yarn=replace(YARN, mscale=1.5, mscale_all_dim=0.5))),
    Case("rope_interleave false, direct query", attention(V3, q_lora_rank=0), {"rope_interleave": False}),
    Case("no dense layers, eps 1e-5", replace(V3, n_dense_layers=0, norm_eps=1e-5)),
    Case("direct query", attention(V2, q_lora_rank=0)),
    Case("q_lora, attention bias", attention(V2, bias=True)),
    Case("groups 2 of 4, route scale 16", moe(V2, n_groups=4, groups_per_token=2, group_score=GroupScore.best)),
    Case("YaRN x4, mscale 0.707, 2 dense layers", replace(attention(V2, yarn=YARN), n_dense_layers=2)),
    Case("theta 500, 1 shared expert", moe(attention(V2, rope_theta=500.0), n_shared=1, route_scale=1.0)),
    Case("whole head turned", GLM),
    Case(
        "half a head turned, QK-norm, bias, eps 1e-5",
        replace(attention(GLM, rope_fraction=0.5, qk_norm=True, bias=True), norm_eps=1e-5),
    ),
    Case("groups 2 of 4, 2 shared experts", moe(GLM, n_groups=4, groups_per_token=2, n_shared=2)),
    Case("one KV head, no dense layers", replace(attention(GLM, n_kv_heads=1), n_dense_layers=0)),
    Case(
        "YaRN x4, half a head turned",
        attention(GLM, rope_fraction=0.5, yarn=replace(YARN, mscale=1.0, mscale_all_dim=0.0)),
    ),
    Case("weights not normalised, 2 dense layers", replace(moe(GLM, normalise_weights=False), n_dense_layers=2)),
    Case("1 dense layer", QWEN),
    Case(
        "weights not normalised, no dense layers, eps 1e-5",
        replace(moe(QWEN, normalise_weights=False), n_dense_layers=0, norm_eps=1e-5),
    ),
    Case(
        "YaRN x4, theta 500, one KV head",
        attention(QWEN, rope_theta=500.0, n_kv_heads=1, yarn=replace(YARN, mscale=1.0, mscale_all_dim=0.0)),
    ),
]


@dataclass(frozen=True)
class Difference:
    """Largest differences between the two models."""

    experts: int
    """Tokens, summed over layers and seeds, that went to other experts."""
    logits: float
    """Absolute."""
    gradients: float
    """Of the tensor that is furthest off, relative to its largest gradient."""


def compare(case: Case, dtype: torch.dtype) -> Difference:
    """The largest differences over SEEDS."""
    found = [compare_once(case, seed, dtype) for seed in SEEDS]
    experts = sum(difference.experts for difference in found)
    return Difference(experts, max(d.logits for d in found), max(d.gradients for d in found))


def compare_once(case: Case, seed: int, dtype: torch.dtype) -> Difference:
    """Run both models on the same weights and tokens, forward and backward."""
    config = write_config(case.model, "float32") | case.published
    lifted = Float32IsFloat64 if dtype is torch.float64 else nullcontext
    ours = random_model(case.model, seed, dtype)
    names = PublishedNames(case.model, rope_interleaved(config))
    tokens_BS, targets_BS = torch.randint(case.model.vocab_size, (2, 2, 24), generator=seeded(seed))
    with lifted():
        theirs = CLASSES[config["model_type"]](CLASSES[config["model_type"]].config_class.from_dict(config)).to(dtype)
        theirs.set_attn_implementation("eager")
        theirs.set_experts_implementation("eager")
        assert read_config(theirs.config.to_dict(), "config.json") == function_values(case.model)
        copy_weights(ours, theirs, names)
        their_experts = watch(theirs, lambda m: type(m).__name__.lower().endswith("topkrouter"), lambda out: out[2])
        their_logits = theirs(tokens_BS, use_cache=False).logits
        F.cross_entropy(their_logits.flatten(0, 1), targets_BS.flatten()).backward()
    our_experts = watch(ours, lambda m: isinstance(m, Router), lambda out: out.experts_TK)
    our_logits = ours.logits(tokens_BS)
    F.cross_entropy(our_logits.flatten(0, 1), targets_BS.flatten()).backward()
    assert len(our_experts) == len(their_experts) == case.model.n_layers - case.model.n_dense_layers
    other = sum(
        int((a.sort(-1).values != b.sort(-1).values).any(-1).sum())
        for a, b in zip(our_experts, their_experts, strict=True)
    )
    return Difference(
        other,
        (our_logits - their_logits).abs().max().item(),
        gradient_difference(ours, theirs, names),
    )


def random_model(config: ModelConfig, seed: int, dtype: torch.dtype) -> Transformer:
    """Our model with every tensor random: norms are not 1, biases and the routers' not 0."""
    model = Transformer(config, dtype).to(dtype)
    initialise(model, seed)
    generator = seeded(seed)  # one for all: tensors of one shape must differ, or exchanging them would go unseen
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if "norm" in name or name.endswith("bias"):
                tensor += 0.2 * noise
            elif name.endswith("expert_bias_E") and config.moe.score is ScoreFunction.sigmoid:
                tensor.copy_(0.1 * noise)
    return model.train()


def copy_weights(ours: Transformer, theirs: nn.Module, names: PublishedNames) -> None:
    """Fill every tensor of `theirs` with ours; either having one that the other lacks is an error."""
    wanted = published_tensors(theirs, lambda tensor: tensor.detach())
    for name, shard in model_state([ours]).items():
        tensor = shard.local
        if there := names.find(name.removeprefix("model.")):
            wanted.pop(there.name).copy_(there.to_theirs(tensor))
        else:
            assert not tensor.any(), name
    assert not wanted, sorted(wanted)


def gradient_difference(ours: Transformer, theirs: nn.Module, names: PublishedNames) -> float:
    """The largest difference of a tensor's gradients relative to its largest gradient, over all tensors."""
    holder = copy.deepcopy(ours)  # gradients by logical name: those of a model that has them for weights
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None, name
            holder.get_parameter(name).copy_(parameter.grad)
    wanted = published_tensors(theirs, lambda tensor: tensor.grad)
    worst = 0.0
    for name, shard in model_state([holder]).items():
        gradient = shard.local
        there = names.find(name.removeprefix("model."))
        if there is None or name.endswith("expert_bias_E"):
            continue
        expected = wanted.pop(there.name)
        difference = (there.to_theirs(gradient) - expected).abs().max().item()
        if difference:
            worst = max(worst, difference / expected.abs().max().item())
    assert not wanted, sorted(wanted)
    return worst


def published_tensors(theirs: nn.Module, part: Callable[[Tensor], Tensor | None]) -> dict[str, Tensor]:
    """What `part` gives of each of their tensors, by published name: in memory transformers stacks the experts."""
    found = {}
    for name, tensor in theirs.state_dict(keep_vars=True).items():
        if (value := part(tensor)) is None:
            continue
        module, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            for expert, (gate, up) in enumerate(value.unflatten(1, (2, -1))):
                found[f"{module}.{expert}.gate_proj.weight"], found[f"{module}.{expert}.up_proj.weight"] = gate, up
        elif module.endswith("experts") and leaf == "down_proj":
            found |= {f"{module}.{expert}.down_proj.weight": down for expert, down in enumerate(value)}
        else:
            found[name] = value
    return found


def watch(model: nn.Module, which: Callable[[nn.Module], bool], part: Callable[[Any], Tensor]) -> list[Tensor]:
    """A list that fills, in the order of the calls, with `part` of the outputs of the modules that `which` picks."""
    seen: list[Tensor] = []
    for module in filter(which, model.modules()):
        module.register_forward_hook(lambda *call: seen.append(part(call[-1])))
    return seen


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_as_it_is_in_float32(case: Case) -> None:
    """transformers untouched."""
    difference = compare(case, torch.float32)
    assert difference.experts == 0
    assert difference.logits < 1e-5
    assert difference.gradients < 1e-4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_in_float64(case: Case) -> None:
    """transformers' own float32 lifted: what is left is the order of sums."""
    difference = compare(case, torch.float64)
    assert difference.experts == 0
    assert difference.logits < 1e-12
    assert difference.gradients < 1e-12


def table() -> str:
    """Markdown: every case with its largest errors in both dtypes."""
    rows = [
        "| transformers | options | logits, float32 | gradients, float32 | logits, float64 | gradients, float64 |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        model_type, _, options = case.id.partition(", ")
        single, double = (compare(case, dtype) for dtype in (torch.float32, torch.float64))
        errors = (single.logits, single.gradients, double.logits, double.gradients)
        rows.append(" | ".join([f"| {model_type}", options, *(f"{error:.1e}" for error in errors)]) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
