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


class RoutingChoice(Enum):
    learned = "learned"
    balanced = "balanced"


class Balance(Enum):
    none = "none"
    bias = "bias"


class GroupScore(Enum):
    best = "best"
    two_best = "two_best"


class ExpertBackend(Enum):
    auto = "auto"
    loop = "loop"
    grouped_mm = "grouped_mm"
    fused = "fused"
    triton = "triton"


class RowBackend(Enum):
    torch = "torch"
    auto = "auto"


class LossBackend(Enum):
    torch = "torch"
    auto = "auto"


@dataclass
class YarnConfig:
    factor: float = 1.0
    """How many times longer than original_length a context may be; 1 leaves RoPE as it is."""
    original_length: int = 4096
    """Context that the model was first trained on, tokens."""
    beta_fast: float = 32.0
    """Pairs that turn more often than this within original_length keep their frequency."""
    beta_slow: float = 1.0
    """Pairs that turn less often than this have it divided by factor."""
    mscale: float = 1.0
    """Growth of the rotated part's length with ln(factor), over that of mscale_all_dim."""
    mscale_all_dim: float = 0.0
    """Growth of all attention scores with ln(factor), squared; DeepSeek sets it as mscale."""

    def check(self) -> None:
        """Refuse what stretches nothing.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        if self.factor < 1:
            raise ConfigError(f"model.attention.yarn.factor={self.factor}: set it to 1 (no stretching) or more")
        if self.original_length < 1:
            raise ConfigError(f"model.attention.yarn.original_length={self.original_length}: set it to at least 1")
        for name in ("beta_fast", "beta_slow"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"model.attention.yarn.{name}={getattr(self, name)}: set it above 0")
        if self.beta_slow >= self.beta_fast:
            raise ConfigError(
                f"model.attention.yarn.beta_slow={self.beta_slow}: set it below "
                f"model.attention.yarn.beta_fast={self.beta_fast}"
            )
        for name in ("mscale", "mscale_all_dim"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.attention.yarn.{name}={getattr(self, name)}: set it to 0 or more")
        idle = [name for name in vars(self) if getattr(self, name) != getattr(YarnConfig, name)]
        if self.factor == 1 and idle:
            key = f"model.attention.yarn.{idle[0]}={getattr(self, idle[0])}"
            raise ConfigError(f"{key}: it acts with model.attention.yarn.factor above 1; set that too, or leave it out")


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
    rope_fraction: float = 1.0
    """gqa: the part of a head, from its first dimension on, that RoPE turns (GLM-4.5: 0.5)."""
    qk_norm: bool = False
    """gqa: RMSNorm over each head's query and key, before RoPE (GLM-4.5)."""
    bias: bool = False
    """A bias on what reads the residual stream (gqa: query, key, value; mla: the down-projections) and mla's output."""
    yarn: YarnConfig = field(default_factory=YarnConfig)
    """Frequencies for a longer context than the model was first trained on (Peng et al. 2023)."""

    @property
    def rope_dim(self) -> int:
        """Width of one head's part that RoPE turns, in both kinds."""
        return int(self.head_dim * self.rope_fraction) if self.kind is AttentionKind.gqa else self.qk_rope_dim

    @property
    def qk_dim(self) -> int:
        """Width of one head's query and key, in both kinds."""
        return self.head_dim if self.kind is AttentionKind.gqa else self.qk_nope_dim + self.qk_rope_dim

    @property
    def value_dim(self) -> int:
        """Width of one head's value, in both kinds."""
        return self.head_dim if self.kind is AttentionKind.gqa else self.v_dim

    def check(self) -> None:
        """Refuse heads that cannot be.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        gqa = self.kind is AttentionKind.gqa
        if gqa and self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"model.attention.n_heads={self.n_heads} is not divisible by model.attention.n_kv_heads="
                f"{self.n_kv_heads}: set model.attention.n_kv_heads to a divisor of {self.n_heads}"
            )
        if not 0 < self.rope_fraction <= 1:
            raise ConfigError(f"model.attention.rope_fraction={self.rope_fraction}: set it above 0 and to at most 1")
        if not gqa:
            for name, off in (("rope_fraction", 1.0), ("qk_norm", False)):
                if getattr(self, name) != off:
                    raise ConfigError(f"model.attention.{name} is for kind=gqa: set it to {str(off).lower()}")
        if self.rope_dim % 2 or self.rope_dim == 0:
            if gqa and self.rope_fraction < 1:
                raise ConfigError(
                    f"model.attention.rope_fraction={self.rope_fraction} turns {self.rope_dim} of "
                    f"model.attention.head_dim={self.head_dim}, and RoPE turns pairs: set it to an even part of them"
                )
            key = f"head_dim={self.head_dim}" if gqa else f"qk_rope_dim={self.qk_rope_dim}"
            raise ConfigError(f"model.attention.{key} is odd and RoPE turns pairs: set it even")
        if self.q_lora_rank < 0:
            raise ConfigError(f"model.attention.q_lora_rank={self.q_lora_rank}: set it to 0 (no compression) or more")
        if self.rope_theta <= 0:
            raise ConfigError(f"model.attention.rope_theta={self.rope_theta}: set it above 0, as 10000")
        if self.yarn.factor != 1 and self.rope_theta <= 1:
            raise ConfigError(f"model.attention.rope_theta={self.rope_theta}: YaRN needs more than 1, as 10000")
        self.yarn.check()


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
    routing: RoutingChoice = RoutingChoice.learned
    """learned: by score; balanced: dealt out, equally many tokens to each expert, to compare layouts (no model)."""
    score: ScoreFunction = ScoreFunction.sigmoid
    """How router logits become scores: softmax (DeepSeek-V2) or sigmoid (DeepSeek-V3)."""
    n_groups: int = 1
    """Groups of neighbouring experts; a token takes its experts from groups_per_token of them (DeepSeek-V2, -V3)."""
    groups_per_token: int = 1
    """Groups that a token may choose its experts from; n_groups for no limit."""
    group_score: GroupScore = GroupScore.two_best
    """What ranks groups: the sum of their two best scores (DeepSeek-V3), or their best (DeepSeek-V2)."""
    normalise_weights: bool = True
    """Divide a token's top_k weights by their sum."""
    route_scale: float = 1.0
    """Factor on the routed experts' weights."""
    balance: Balance = Balance.bias
    """bias: aux-loss-free balancing by a bias on the choice (DeepSeek-V3); none: no balancing."""
    bias_update_rate: float = 0.001
    """balance=bias: how far an expert's bias moves per step."""
    sequence_loss_weight: float = 0.0
    """Factor on the balancing loss of each sequence (DeepSeek-V3: 1e-4); 0 for none."""
    batch_loss_weight: float = 0.0
    """Factor on the balancing loss over a micro-batch of all data-parallel ranks (Switch Transformer); 0 for none."""
    z_loss_weight: float = 0.0
    """Factor on the mean squared log-sum-exp of the router's logits (ST-MoE: 1e-3); 0 for none."""
    capacity_factor: Optional[float] = None
    """Most pairs that an expert takes of a sequence, as a multiple of the even share; null drops none."""

    @property
    def has_router_loss(self) -> bool:
        """Whether the router adds to what is minimised."""
        return any((self.sequence_loss_weight, self.batch_loss_weight, self.z_loss_weight))

    def check(self) -> None:
        """Refuse routing that cannot be.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        if self.top_k > self.n_routed:
            raise ConfigError(
                f"model.moe.top_k={self.top_k} exceeds model.moe.n_routed={self.n_routed}: "
                f"set model.moe.top_k to at most {self.n_routed}"
            )
        self._check_groups()
        if self.n_shared < 0:
            raise ConfigError(f"model.moe.n_shared={self.n_shared}: set it to 0 or more")
        if self.route_scale <= 0:
            raise ConfigError(f"model.moe.route_scale={self.route_scale}: set it above 0; 1 leaves weights as they are")
        for name in ("bias_update_rate", "sequence_loss_weight", "batch_loss_weight", "z_loss_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.moe.{name}={getattr(self, name)}: set it to 0 or more")
        if self.balance is not Balance.bias and self.bias_update_rate not in (0, MoEConfig.bias_update_rate):
            raise ConfigError(
                f"model.moe.bias_update_rate={self.bias_update_rate}: with model.moe.balance={self.balance.value} no "
                "bias moves; set model.moe.balance=bias, or leave it out"
            )
        if self.routing is RoutingChoice.balanced and self.balance is not Balance.none:
            raise ConfigError(
                f"model.moe.balance={self.balance.value}: with model.moe.routing=balanced no bias moves a choice; "
                "set model.moe.balance=none"
            )
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ConfigError(f"model.moe.capacity_factor={self.capacity_factor}: set it above 0, or null to drop none")

    def _check_groups(self) -> None:
        if self.n_routed % self.n_groups:
            raise ConfigError(
                f"model.moe.n_groups={self.n_groups} does not divide model.moe.n_routed={self.n_routed}: "
                f"set model.moe.n_groups to a divisor of {self.n_routed}"
            )
        if self.groups_per_token > self.n_groups:
            raise ConfigError(
                f"model.moe.groups_per_token={self.groups_per_token} exceeds model.moe.n_groups={self.n_groups}: "
                f"set model.moe.groups_per_token to at most {self.n_groups}"
            )
        group_size = self.n_routed // self.n_groups
        if self.top_k > self.groups_per_token * group_size:
            raise ConfigError(
                f"model.moe.top_k={self.top_k} exceeds the {self.groups_per_token * group_size} experts of "
                f"model.moe.groups_per_token={self.groups_per_token} groups: raise model.moe.groups_per_token"
            )
        if self.groups_per_token < self.n_groups and self.group_score is GroupScore.two_best and group_size < 2:
            raise ConfigError(
                f"model.moe.n_groups={self.n_groups} leaves one expert a group, which has no two best: "
                "set model.moe.group_score=best"
            )


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
    """auto: fused (SwiGLU by us) in bf16 on GPUs, else grouped_mm or loop; triton: products by us too, on Hopper."""
    row_backend: RowBackend = RowBackend.auto
    """How rows are put in order and summed: torch's operators; auto: in one pass by Triton, on a GPU below float64."""
    loss_backend: LossBackend = LossBackend.auto
    """How logits become loss and gradient: torch's operators; auto: in one pass by Triton, on a GPU below float64."""
    loss_chunk_size: int = 4096
    """Tokens whose logits exist at a time: fewer take less memory, more make larger and fewer products."""
    init_from: Optional[str] = None
    """Folder whose weights to start from: a run, a checkpoint, or a Hugging Face model; null starts from the seed."""
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
        self.attention.check()
        if self.n_dense_layers < self.n_layers:
            self.moe.check()
        elif self.moe.has_router_loss or self.moe.capacity_factor is not None:
            raise ConfigError(
                f"model.n_dense_layers={self.n_dense_layers} leaves no layer with experts, and a capacity or a loss of "
                "the router is set: leave these out, or set model.n_dense_layers lower"
            )
        elif self.moe.routing is RoutingChoice.balanced:
            raise ConfigError(
                f"model.moe.routing=balanced: model.n_dense_layers={self.n_dense_layers} leaves no layer with experts; "
                "leave it out"
            )

    def _positive_sizes(self) -> dict[str, int]:
        names = ("vocab_size", "dim", "n_layers", "dense_dim", "max_sequence_length", "loss_chunk_size")
        sizes = {name: getattr(self, name) for name in names}
        attention = ("n_heads", "n_kv_heads", "head_dim", "kv_lora_rank", "qk_nope_dim", "qk_rope_dim", "v_dim")
        sizes |= {f"attention.{name}": getattr(self.attention, name) for name in attention}
        moe = ("n_routed", "top_k", "expert_dim", "n_groups", "groups_per_token")
        return sizes | {f"moe.{name}": getattr(self.moe, name) for name in moe}
