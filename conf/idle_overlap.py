"""Overlap knobs for which a job has no use.

A preset names every knob, for any layout, and where nothing reads one it is idle. A value that is not its preset's was
typed for this job: that is a mistake, and refused.
"""

import yaml

from conf.options import CONF_DIR
from models.config import ConfigError, ModelConfig
from parallel.config import EngineName, OverlapConfig, Reduction, StrategyConfig
from parallel.mesh import Degrees


def check_idle_overlap(overlap: OverlapConfig, strategy: StrategyConfig, degrees: Degrees, model: ModelConfig) -> None:
    """Refuse a knob that is neither at its default nor its preset's, where nothing reads it.

    Raises:
        ConfigError: naming the knob.
    """
    path = CONF_DIR / "overlap" / f"{overlap.name}.yaml"
    # The preset of a user's own folder is not known here: all that it says may be meant for other layouts.
    preset = yaml.safe_load(path.read_text()) if path.exists() else vars(overlap)
    default = OverlapConfig()
    for knob, why in _idle(strategy, degrees, model).items():
        value = getattr(overlap, knob)
        if value not in (getattr(default, knob), preset.get(knob)):
            shown = str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(f"overlap.{knob}={shown}: {why}; leave it out")


def _idle(strategy: StrategyConfig, degrees: Degrees, model: ModelConfig) -> dict[str, str]:
    """Knobs that nothing reads, each with why; engines that are not ours have rules of their own."""
    idle: dict[str, str] = {}
    if strategy.engine is EngineName.native:
        reduction = strategy.reduction
        said = f"with strategy.reduction={reduction.value}"
        if reduction is not Reduction.shard:
            idle |= dict.fromkeys(("param_prefetch", "reshard_after_forward"), f"{said} no parameter is gathered")
        if reduction is Reduction.shard:
            idle["bucket_mib"] = f"{said} gradients are reduced part by part"
        if degrees.world == 1:
            idle |= dict.fromkeys(("grad_reduce", "bucket_mib"), "on one rank no gradient is reduced")
    if degrees.tp == 1:
        idle["async_tp"] = "with strategy.tp=1 no sequence is cut"
    if degrees.pp == 1:
        idle["pipeline_p2p"] = "with strategy.pp=1 there is no pipeline"
    if degrees.ep * degrees.etp == 1:
        idle["shared_experts"] = "with strategy.ep=1 no row travels that they could hide"
    elif model.moe.n_shared == 0:
        idle["shared_experts"] = "model.moe.n_shared=0, there are none to hide behind"
    return idle
