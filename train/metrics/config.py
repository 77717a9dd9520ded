"""Where a run's metrics go, as configuration."""

from dataclasses import dataclass
from enum import Enum
from typing import Optional


class WandbMode(Enum):
    """What wandb does with a run."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class LoggingConfig:
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    wandb: WandbMode = WandbMode.offline
    """`online`: to the server, else offline; `offline`: to the run folder; `disabled`: not even imported."""

    wandb_project: str = "switchyard"
    """Project that the run is filed under."""

    wandb_entity: Optional[str] = None
    """User or team that owns the project; null: wandb's own default."""

    wandb_group: Optional[str] = None
    """Experiment that the run is one of, as the layouts of one comparison; null: none."""

    wandb_init_timeout_s: float = 20.0
    """Seconds to wait for the server at the start before going offline."""

    wandb_finish_timeout_s: float = 15.0
    """Seconds to wait at the end for the upload; what is left can be sent with `wandb sync`."""
