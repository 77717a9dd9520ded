"""Where numbers go: the typed fields behind `conf/logging/`."""

from dataclasses import dataclass
from enum import Enum
from typing import Optional


class WandbMode(Enum):
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class LoggingConfig:
    name: str = "default"
    """Name of the preset, as in logging=NAME."""
    wandb: WandbMode = WandbMode.offline
    """online sends to a server, offline writes to the run folder for a later `wandb sync`, disabled does neither."""
    wandb_project: str = "switchyard"
    """Project of the wandb run."""
    wandb_entity: Optional[str] = None  # noqa: UP045  (OmegaConf reads Optional)
    """Team or user that owns it; null is the server's default."""
    wandb_init_timeout_s: float = 20.0
    """online: seconds to reach the server before going on offline."""
