"""What a model is: the typed fields behind `conf/model/`, and the checks that need no other config."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional


class ConfigError(ValueError):
    """A value that the user must change. Its message is one line that names the key and what to set it to."""


class AttentionKind(Enum):
    gqa = "gqa"
    mla = "mla"


class ScoreFunction(Enum):
    softmax = "softmax"
    sigmoid = "sigmoid"


class Balance(Enum):
    none = "none"
    bias = "bias"


class ExpertBackend(Enum):
    auto = "auto"
    loop = "loop"
    grouped_mm = "grouped_mm"


@dataclass
class AttentionConfig:
    kind: AttentionKind = AttentionKind.gqa
    """gqa (grouped-query) or mla (multi-head latent attention, DeepSeek-V2)."""
    n_heads: int = 4
    """Query heads."""
    n_kv_heads: int = 2
    """gqa: key and value heads; divides n_heads."""
    head_dim: int = 32
    """gqa: width of a head, even (RoPE turns pairs)."""
    q_lora_rank: int = 0
    """mla: rank of the compressed query; 0 projects the query directly."""
    kv_lora_rank: int = 64
    """mla: rank of the compressed key and value."""
    qk_nope_dim: int = 32
    """mla: width of a head's query and key without position."""
    qk_rope_dim: int = 16
    """mla: width of the query and key part that carries RoPE, even; its key is shared by all heads."""
    v_dim: int = 32
    """mla: width of a head's value."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""

    @property
    def qk_dim(self) -> int:
        """Width of one head's query and key, in both kinds."""
        return self.head_dim if self.kind is AttentionKind.gqa else self.qk_nope_dim + self.qk_rope_dim

    @property
    def value_dim(self) -> int:
        """Width of one head's value, in both kinds."""
        return self.head_dim if self.kind is AttentionKind.gqa else self.v_dim


@dataclass
class MoEConfig:
    n_routed: int = 8
    """Routed experts per layer."""
    top_k: int = 2
    """Routed experts that each token takes."""
    n_shared: int = 1
    """Shared experts that every token takes; 0 for none."""
    expert_dim: int = 64
    """Hidden width of one expert."""
    score: ScoreFunction = ScoreFunction.sigmoid
    """How router logits become scores: softmax (DeepSeek-V2) or sigmoid (DeepSeek-V3)."""
    normalise_weights: bool = True
    """Divide a token's top_k weights by their sum."""
    route_scale: float = 1.0
    """Factor on the routed experts' weights."""
    balance: Balance = Balance.bias
    """bias: aux-loss-free balancing by a bias on the choice (DeepSeek-V3); none: no balancing."""
    bias_update_rate: float = 0.001
    """balance=bias: how far an expert's bias moves per step."""


@dataclass
class ModelConfig:
    name: str = "custom"
    """Name of the size, as in model=NAME."""
    vocab_size: int = 256
    """Token ids; data=stdlib needs the 256 bytes."""
    dim: int = 128
    """Width of the residual stream."""
    n_layers: int = 4
    """Transformer blocks."""
    n_dense_layers: int = 1
    """Leading blocks with a dense feed-forward in place of experts."""
    dense_dim: int = 256
    """Hidden width of the dense feed-forward."""
    max_sequence_length: int = 256
    """Longest sequence that the model is meant for, tokens."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    expert_backend: ExpertBackend = ExpertBackend.auto
    """auto picks grouped_mm where it runs, else the readable loop; the others force one."""
    init_from: Optional[str] = None
    """Run or checkpoint folder whose weights to start from; null starts from the seed."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """The attention of every block."""
    moe: MoEConfig = field(default_factory=MoEConfig)
    """The experts of every block after the dense ones."""

    def check(self) -> None:
        """Refuse sizes that no network has.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        for path, value in self._positive_sizes().items():
            if value < 1:
                raise ConfigError(f"model.{path}={value}: set it to at least 1")
        if not 0 <= self.n_dense_layers <= self.n_layers:
            raise ConfigError(
                f"model.n_dense_layers={self.n_dense_layers}: set it between 0 and model.n_layers={self.n_layers}"
            )
        if self.norm_eps < 1e-30:  # in float32 much less is 0
            raise ConfigError(f"model.norm_eps={self.norm_eps}: set it to at least 1e-30, as 1e-6")
        self._check_attention()
        if self.n_dense_layers < self.n_layers:
            self._check_moe()

    def _positive_sizes(self) -> dict[str, int]:
        names = ("vocab_size", "dim", "n_layers", "dense_dim", "max_sequence_length")
        sizes = {name: getattr(self, name) for name in names}
        attention = ("n_heads", "n_kv_heads", "head_dim", "kv_lora_rank", "qk_nope_dim", "qk_rope_dim", "v_dim")
        sizes |= {f"attention.{name}": getattr(self.attention, name) for name in attention}
        moe = ("n_routed", "top_k", "expert_dim")
        return sizes | {f"moe.{name}": getattr(self.moe, name) for name in moe}

    def _check_attention(self) -> None:
        a = self.attention
        if a.kind is AttentionKind.gqa and a.n_heads % a.n_kv_heads:
            raise ConfigError(
                f"model.attention.n_heads={a.n_heads} is not divisible by model.attention.n_kv_heads={a.n_kv_heads}: "
                f"set model.attention.n_kv_heads to a divisor of {a.n_heads}"
            )
        rope_key, rope_dim = ("head_dim", a.head_dim) if a.kind is AttentionKind.gqa else ("qk_rope_dim", a.qk_rope_dim)
        if rope_dim % 2:
            raise ConfigError(f"model.attention.{rope_key}={rope_dim} is odd and RoPE turns pairs: set it even")
        if a.q_lora_rank < 0:
            raise ConfigError(f"model.attention.q_lora_rank={a.q_lora_rank}: set it to 0 (no compression) or more")
        if a.rope_theta <= 0:
            raise ConfigError(f"model.attention.rope_theta={a.rope_theta}: set it above 0, as 10000")

    def _check_moe(self) -> None:
        m = self.moe
        if m.top_k > m.n_routed:
            raise ConfigError(
                f"model.moe.top_k={m.top_k} exceeds model.moe.n_routed={m.n_routed}: "
                f"set model.moe.top_k to at most {m.n_routed}"
            )
        if m.n_shared < 0:
            raise ConfigError(f"model.moe.n_shared={m.n_shared}: set it to 0 or more")
        if m.route_scale <= 0:
            raise ConfigError(f"model.moe.route_scale={m.route_scale}: set it above 0; 1 leaves weights as they are")
        if m.bias_update_rate < 0:
            raise ConfigError(f"model.moe.bias_update_rate={m.bias_update_rate}: set it to 0 or more")
