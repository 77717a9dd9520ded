"""What is measured of a run, and where its metrics go, as configuration."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from models.config import ConfigError


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


@dataclass
class MeasureConfig:
    """What is measured of each step beside its speed."""

    name: str = "default"
    """Name of the preset, as in measure=NAME."""

    clock: bool = True
    """Time every phase of a step and every wait for communication (`time/*`); false measures tokens/s alone."""

    trace_every: int = 0
    """Steps between deep traces (traces/ in the run folder); 0: only where the run folder holds a file TRACE."""

    trace_slow: bool = False
    """Trace deeply after a step that took longer than the median step by three median deviations."""

    trace_limit: int = 4
    """Deep traces of one attempt at most, but for those that a file TRACE asks for: each slows two steps."""

    trace_ranks: list[int] = field(default_factory=lambda: [0])
    """Ranks that trace, each into its own files."""

    nvtx: bool = False
    """Mark phases, waits and collectives as NVTX ranges too, for Nsight Systems; on GPUs only."""

    expert_load: bool = False
    """Write how many tokens each expert took (expert_load.jsonl), for the map in switchyard report."""

    counts: bool = False
    """Write counts.json: graphs that were compiled, and the first step's collectives, calls and bytes of all ranks."""

    gpu_hour_usd: Optional[float] = None
    """Price of one GPU for an hour, for cost/usd; null: no cost is logged, nor is one without GPUs."""

    def check(self, world_size: int) -> None:
        """Refuse values that no run can have.

        Raises:
            ConfigError: naming the key and what to set it to.
        """
        for name in ("trace_every", "trace_limit"):
            if (count := getattr(self, name)) < 0:
                raise ConfigError(f"measure.{name}={count}: set it to 0 or more")
        if self.trace_every == 1:
            raise ConfigError("measure.trace_every=1: the step before a traced one warms up; set it to 2 or more, or 0")
        for name in ("trace_every", "trace_slow", "nvtx"):
            if getattr(self, name) and not self.clock:
                value = str(getattr(self, name)).lower()
                raise ConfigError(
                    f"measure.{name}={value} shows what the clock times: set measure.clock=true, or it to "
                    f"{'0' if name == 'trace_every' else 'false'}"
                )
        if not self.trace_ranks and (self.trace_every or self.trace_slow):
            raise ConfigError("measure.trace_ranks=[]: no rank would trace; name some, as [0]")
        for rank in self.trace_ranks:
            if not 0 <= rank < world_size:
                raise ConfigError(
                    f"measure.trace_ranks={self.trace_ranks}: there is no rank {rank} among {world_size}; "
                    "name ranks from 0"
                )
        if self.gpu_hour_usd is not None and self.gpu_hour_usd <= 0:
            raise ConfigError(f"measure.gpu_hour_usd={self.gpu_hour_usd}: set it above 0, or null")
