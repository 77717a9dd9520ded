"""The knobs of `overlap.*`: which values are off and on, which seconds of a step each claims to hide, and where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from parallel.config import Reduction, StrategyConfig
from parallel.mesh import Degrees

Value = bool | int
NO_KNOBS = ("name", "bucket_mib")
"""Fields of OverlapConfig that hide nothing by themselves."""


class Asks(Enum):
    """What a layout must have for a knob to have something to hide."""

    nothing = "nothing"
    ranks = "ranks"
    fsdp = "fsdp"
    tp = "tp"
    ep = "ep"
    pp = "pp"


@dataclass(frozen=True)
class Knob:
    """How one knob is put to the proof."""

    off: Value
    on: Value
    """Where the words that were typed do not say themselves how far on."""
    hides: tuple[str, ...]
    """Buckets of a step (train/metrics/breakdown.py) that it claims to make shorter."""
    asks: Asks = Asks.nothing
    needs: Mapping[str, str] = field(default_factory=dict)
    """Values of other keys, off and on alike, without which it does nothing; what is typed goes before them."""
    sums: str | None = None
    """What it adds up in another order, for which losses may differ in their last digits; None: nothing."""

    def sides(self, typed: Value) -> tuple[Value, Value]:
        """Off and on, where the words that were typed come to `typed`: that itself is one of the two."""
        return self.off, self.on if typed == self.off else typed


KNOBS: Mapping[str, Knob] = {
    "grad_reduce": Knob(False, True, ("exposed_comm/dp", "exposed_comm/fsdp"), Asks.ranks),
    "param_prefetch": Knob(1, 2, ("exposed_comm/fsdp",), Asks.fsdp),
    "reshard_after_forward": Knob(True, False, ("exposed_comm/fsdp",), Asks.fsdp),
    "data": Knob(0, 2, ("data_wait",)),
    "checkpoint": Knob(False, True, ("ckpt_save",), Asks.nothing, {"checkpoint": "default", "checkpoint.every": "5"}),
    "shared_experts": Knob(False, True, ("exposed_comm/ep",), Asks.ep),
    "dispatch_chunks": Knob(1, 2, ("exposed_comm/ep",), Asks.ep),
    "forward_backward": Knob(False, True, ("exposed_comm/ep",), Asks.ep),
    "async_tp": Knob(1, 4, ("exposed_comm/tp",), Asks.tp, sums="weight gradients, chunk by chunk"),
    "pipeline_p2p": Knob(False, True, ("exposed_comm/pp", "bubble"), Asks.pp),
    "optimizer": Knob(
        False,
        True,
        ("compute_opt", "exposed_comm/dp"),
        Asks.ranks,
        {"optim.clip_norm": "null", "recovery.non_finite": "fail"},
    ),
}
"""All of them."""

_HAS: Mapping[Asks, tuple[Callable[[StrategyConfig, Degrees], bool], str]] = {
    Asks.nothing: (lambda _, __: True, ""),
    Asks.ranks: (lambda _, degrees: degrees.world > 1, "nobody is there to reduce a gradient with; set nproc=2"),
    Asks.fsdp: (
        lambda strategy, degrees: strategy.reduction is Reduction.shard and degrees.dp > 1,
        "no parameter is gathered; choose strategy=fsdp or one composed with it",
    ),
    Asks.tp: (lambda _, degrees: degrees.tp > 1, "no layer is split over ranks; choose strategy=tp, or strategy.tp=2"),
    Asks.ep: (
        lambda _, degrees: degrees.ep * degrees.etp > 1,
        "no row travels to an expert; choose strategy=ep, or strategy.ep=2",
    ),
    Asks.pp: (lambda _, degrees: degrees.pp > 1, "there is no pipeline; choose strategy=pp, or strategy.pp=2"),
}


def why_idle(name: str, strategy: StrategyConfig, degrees: Degrees) -> str | None:
    """Why the knob has nothing to hide in this layout; None if it may have."""
    has, without = _HAS[KNOBS[name].asks]
    if has(strategy, degrees):
        return None
    return f"overlap.{name}: with strategy={strategy.name} {without}"


def typed(value: Value) -> str:
    """As it is written in a word."""
    return str(value).lower()
