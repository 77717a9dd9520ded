"""Overlap knobs for which a layout has no use.

A preset names every knob, for any layout, and where nothing reads one it is idle. A value that is not its preset's was
typed for this job: that is a mistake, and refused.
"""

import yaml

from conf.options import CONF_DIR
from models.config import ConfigError
from parallel.config import OverlapConfig
from parallel.mesh import Degrees

IDLE = {"async_tp": ("tp", "no sequence is cut"), "pipeline_p2p": ("pp", "there is no pipeline")}
"""By knob: without which degree nothing reads it, and why."""


def check_idle_overlap(overlap: OverlapConfig, degrees: Degrees) -> None:
    """Refuse a knob that is neither at its default nor its preset's, where nothing reads it.

    Raises:
        ConfigError: naming the knob.
    """
    path = CONF_DIR / "overlap" / f"{overlap.name}.yaml"
    # The preset of a user's own folder is not known here: all that it says may be meant for other layouts.
    preset = yaml.safe_load(path.read_text()) if path.exists() else vars(overlap)
    default = OverlapConfig()
    for knob, (degree, why) in IDLE.items():
        value = getattr(overlap, knob)
        if getattr(degrees, degree) == 1 and value not in (getattr(default, knob), preset[knob]):
            shown = str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(f"overlap.{knob}={shown}: with strategy.{degree}=1 {why}; leave it out")
