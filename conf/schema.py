"""The whole configuration of a job as one typed object, and the checks that need more than one part of it."""

from dataclasses import dataclass, field

from models.config import ConfigError, ExpertBackend, ModelConfig
from parallel.config import Dtype, OverlapConfig, PrecisionConfig, StrategyConfig
from parallel.mesh import Degrees
from train.config import CheckpointConfig, OptimConfig, RunConfig, TrainConfig
from train.data.config import DataConfig, DataSource
from train.metrics.config import LoggingConfig


@dataclass
class JobConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network (group: model=NAME)."""
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    """How it is laid over ranks (group: strategy=NAME)."""
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    """What is hidden behind what (group: overlap=NAME)."""
    data: DataConfig = field(default_factory=DataConfig)
    """What it learns from (group: data=NAME)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How weights move (group: optim=NAME)."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """In which dtypes (group: precision=NAME)."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When state is saved (group: checkpoint=NAME)."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Where numbers go (group: logging=NAME)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Steps, batch, seed, evaluation."""
    run: RunConfig = field(default_factory=RunConfig)
    """The run folder."""


def validate(config: JobConfig, world_size: int) -> None:
    """Refuse every combination that cannot run on `world_size` ranks. Needs no process group and no device.

    Raises:
        ConfigError: one line that names the value to change and what to set it to.
    """
    config.model.check()
    config.train.check()
    config.optim.check()
    config.checkpoint.check()
    config.overlap.check(config.strategy.reduction)
    dp = Degrees.resolve(config.strategy, world_size).dp
    config.train.micro_batch(dp)
    config.train.eval_micro_batch(dp)
    _check_sequence(config)
    _check_precision(config)
    if config.data.source is DataSource.stdlib and config.model.vocab_size < 256:
        raise ConfigError(
            f"model.vocab_size={config.model.vocab_size}: data=stdlib is bytes; set it to 256 or more, "
            "or choose data=synthetic"
        )
    if config.run.name is not None and config.run.dir is not None:
        raise ConfigError("run.name and run.dir both name the run folder: set one of them")
    if config.run.name is not None and "/" in config.run.name.strip("."):
        raise ConfigError(f"run.name={config.run.name}: a name, not a path; use run.dir for a path")
    if config.logging.wandb_init_timeout_s <= 0:
        raise ConfigError(f"logging.wandb_init_timeout_s={config.logging.wandb_init_timeout_s}: set it above 0")


def _check_sequence(config: JobConfig) -> None:
    length, longest = config.data.sequence_length, config.model.max_sequence_length
    if length < 1:
        raise ConfigError(f"data.sequence_length={length}: set it to at least 1")
    if length > longest:
        raise ConfigError(
            f"data.sequence_length={length} is longer than model.max_sequence_length={longest}: "
            f"set data.sequence_length to at most {longest}"
        )


def _check_precision(config: JobConfig) -> None:
    precision = config.precision
    if precision.parameters is Dtype.bfloat16:
        raise ConfigError("precision.parameters=bfloat16: AdamW's small steps round away; set it to float32")
    if precision.compute is Dtype.float64 and precision.parameters is not Dtype.float64:
        raise ConfigError("precision.compute=float64 needs precision.parameters=float64: use precision=fp64")
    if config.model.expert_backend is ExpertBackend.grouped_mm and precision.compute is Dtype.float64:
        raise ConfigError("model.expert_backend=grouped_mm has no float64: set it to auto or loop")
