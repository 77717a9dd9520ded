"""The whole configuration of a job as one typed object, and the checks that need more than one part of it."""

from dataclasses import dataclass, field

from conf.idle_overlap import check_idle_overlap
from conf.keys import Keys, values
from models.balanced_routing import balanced, even_length
from models.config import ConfigError, ExpertBackend, ModelConfig
from parallel.check import check_layout
from parallel.check_cuda_graph import check_cuda_graph
from parallel.check_engine import check_engine
from parallel.check_fp8 import check_fp8
from parallel.config import (
    Dtype,
    EngineName,
    Matmul,
    OverlapConfig,
    PrecisionConfig,
    Reduction,
    StrategyConfig,
)
from parallel.mesh import Degrees
from parallel.nodes import check_nodes
from parallel.pipeline.schedules import ScheduleName
from train.config import CheckpointConfig, Moments, OptimConfig, RunConfig, TrainConfig
from train.data.config import DataConfig, DataSource, choice
from train.faults.config import FaultsConfig
from train.faults.recovery_config import NonFinite, RecoveryConfig
from train.metrics.config import LoggingConfig, MeasureConfig

LONGEST_NAME = 100
"""Bytes. A run folder is called by time, model and strategy, and file systems take 255."""
LARGEST_FLOAT = 3.4e38
"""What float32 holds, in which all of these numbers end up."""


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
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    """What is measured of a step (group: measure=NAME)."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """What a job does about what goes wrong (group: recovery=NAME)."""
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    """What is made to go wrong, for rehearsal (group: faults=NAME)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Steps, batch, seed, evaluation."""
    run: RunConfig = field(default_factory=RunConfig)
    """The run folder."""


def validate(config: JobConfig, world_size: int, ranks_per_node: int | None = None) -> None:
    """Refuse every combination that cannot run on `world_size` ranks. Needs no process group and no device.

    `ranks_per_node`: None if all are on one.

    Raises:
        ConfigError: one line that names the value to change and what to set it to.
    """
    _check_values(config)
    config.model.check()
    config.train.check()
    config.optim.check()
    config.checkpoint.check()
    config.overlap.check()
    config.measure.check(world_size)
    config.recovery.check()
    config.faults.check(world_size, config.train.steps)
    if config.recovery.check_replicas_every and config.strategy.engine is EngineName.deepspeed:
        raise ConfigError(
            f"recovery.check_replicas_every={config.recovery.check_replicas_every}: DeepSpeed shows one copy of each "
            "weight and nothing to compare it with; set it to 0"
        )
    config.precision.check(config.strategy.reduction)
    degrees = Degrees.resolve(config.strategy, world_size)
    check_nodes(config.strategy, degrees, ranks_per_node or world_size)
    check_engine(config.strategy, config.overlap, config.precision, degrees)
    check_idle_overlap(config.overlap, config.strategy, degrees, config.model)
    if config.overlap.optimizer:
        _check_early_updates(config)
    if config.optim.one_pass:
        _check_one_pass(config)
    if config.optim.halves:
        _check_halves(config, degrees)
    n_micro_batches = config.train.micro_batches(degrees.dp, degrees.pp)
    config.train.eval_micro_batch(degrees.dp, degrees.pp)
    _check_sequence(config)
    check_layout(config.model, config.strategy, config.overlap, degrees, n_micro_batches, config.data.sequence_length)
    if config.precision.matmul is Matmul.fp8:
        check_fp8(config.model, config.strategy, config.overlap, degrees, n_micro_batches)
    if config.strategy.cuda_graph:
        check_cuda_graph(config.model, config.strategy, config.overlap, config.precision, degrees)
    if config.model.expert_backend not in (ExpertBackend.auto, ExpertBackend.loop):
        _check_grouped_mm(config.model, config.precision.compute, degrees.etp)
    config.data.check()
    _check_bytes(config)
    if config.run.name is not None and config.run.dir is not None:
        raise ConfigError(
            f"run.name={config.run.name} and run.dir={config.run.dir} both name the run folder: set one of them to null"
        )
    for name in ("wandb_init_timeout_s", "wandb_finish_timeout_s"):
        if (seconds := getattr(config.logging, name)) <= 0:
            raise ConfigError(f"logging.{name}={seconds}: set it above 0")


def _check_values(config: JobConfig) -> None:
    """What no key can be: a number that is none, an empty text, a name that a folder cannot have."""
    keys = Keys.of(JobConfig)
    # An interpolation ("${model}" in a YAML file) puts anything in a list's place, and OmegaConf lets it.
    for key, items in (("data.mixture", config.data.mixture), ("faults.inject", config.faults.inject)):
        if not isinstance(items, list):
            raise ConfigError(f"{key}: set it to {keys.expected(key)}")
    dataset_names = [f"{key}.name" for key, part in config.data.sources().items() if part.source is DataSource.hf]
    for key, value in values(config):
        or_null = ", or null" if type(None) in keys.kinds(key) else ""
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            raise ConfigError(f"{key}={value}: set it to a finite number{or_null}")
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"{key} is empty: set it to a text{or_null}")
        if isinstance(value, str) and not value.isprintable():
            raise ConfigError(f"{key}={value!r} holds a character that cannot be printed: leave it out")
        if key.endswith(".name") and value is not None and key not in dataset_names:
            _check_name(key, value)


def _check_name(key: str, name: str) -> None:
    if "/" in name or name in (".", ".."):
        use_dir = "; run.dir takes a path" if key == "run.name" else ""
        raise ConfigError(f"{key}={name}: it names a folder and is no path; set it to a name without /{use_dir}")
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigError(f"{key}={name[:20]}…: it names a folder; set it to {LONGEST_NAME} bytes at most")


def _check_grouped_mm(model: ModelConfig, compute: Dtype, etp: int) -> None:
    backend = model.expert_backend.value
    if compute is Dtype.float64:
        raise ConfigError(f"model.expert_backend={backend} has no float64: set it to auto or loop")
    if model.expert_backend is not ExpertBackend.grouped_mm and compute is not Dtype.bfloat16:
        raise ConfigError(
            f"model.expert_backend={backend} computes in bfloat16, not in {compute.value}: set it to auto"
        )
    multiple = 16 // compute.torch.itemsize  # rows must begin at multiples of 16 bytes
    for key, size, n_parts in (("dim", model.dim, 1), ("moe.expert_dim", model.moe.expert_dim, etp)):
        if size % (multiple * n_parts):
            of_parts = f" on each of {n_parts} ranks" if n_parts > 1 else ""
            raise ConfigError(
                f"model.{key}={size}: {backend} takes multiples of {multiple} in {compute.value}{of_parts}; "
                f"set it to {size + -size % (multiple * n_parts)}, or model.expert_backend=loop"
            )


def _check_early_updates(config: JobConfig) -> None:
    """Weights move before the gradient norm and the losses of all ranks are known."""
    if config.optim.clip_norm is not None:
        raise ConfigError(
            f"overlap.optimizer=true: optim.clip_norm={config.optim.clip_norm} scales gradients by a norm that is "
            "known only after backward; set it to null"
        )
    if config.recovery.non_finite is not NonFinite.fail:
        raise ConfigError(
            f"overlap.optimizer=true: recovery.non_finite={config.recovery.non_finite.value} leaves out a step that is "
            "not finite, which is known only after weights have moved; set it to fail"
        )


def _check_one_pass(config: JobConfig) -> None:
    """Its kernel takes plain tensors, and rounds by the place that a tensor has among a rank's."""
    if config.strategy.engine is not EngineName.native:
        raise ConfigError(
            f"optim.one_pass=true: strategy.engine={config.strategy.engine.value} steps torch's AdamW over tensors of "
            "its own; set it to false"
        )
    if config.optim.moments is Moments.bfloat16 and config.strategy.schedule is ScheduleName.dualpipe:
        raise ConfigError(
            "optim.moments=bfloat16: the two copies of a stage that strategy.schedule=dualpipe keeps would be rounded "
            "apart; set it to full, or choose dualpipev"
        )


def _check_halves(config: JobConfig, degrees: Degrees) -> None:
    """One half is the copy that modules compute with, if a rank has all of a weight's masters."""
    reduction, precision, model = config.strategy.reduction, config.precision, config.model
    for name, dtype in (("parameters", Dtype.float32), ("compute", Dtype.bfloat16)):
        if (given := getattr(precision, name)) is not dtype:
            raise ConfigError(
                f"optim.halves=true: precision.{name}={given.value}, and halves are a bfloat16 and what it lacks of a "
                "float32; set it to false, or use precision=bf16"
            )
    if reduction is not Reduction.shard_optimizer:
        raise ConfigError(
            f"optim.halves=true: strategy.reduction={reduction.value} keeps no weight in bfloat16 beside its master; "
            "set it to false, or use strategy=zero1"
        )
    if degrees.paired:
        raise ConfigError(
            "optim.halves=true: with strategy.schedule=dualpipe each weight is on two ranks, which share out its "
            "masters; set it to false, or choose dualpipev"
        )
    experts = model.n_dense_layers < model.n_layers
    if (fewest := min(degrees.dp, degrees.expert_copies) if experts else degrees.dp) > 1:
        raise ConfigError(
            f"optim.halves=true: each weight is on {fewest} ranks or more, which share out its masters; set it to "
            f"false{', or strategy.ep=-1, so that each expert is on one' if experts else ''}"
        )


def _check_bytes(config: JobConfig) -> None:
    """Bytes are ids up to 255."""
    for key, part in config.data.sources().items():
        untokenised = part.source in (DataSource.text, DataSource.hf) and config.data.tokenizer is None
        if config.model.vocab_size < 256 and (untokenised or part.source is DataSource.stdlib):
            raise ConfigError(
                f"model.vocab_size={config.model.vocab_size}: {choice(key, part.source)} is bytes; "
                f"set it to 256 or more, or {'set data.tokenizer' if untokenised else 'choose data=synthetic'}"
            )


def _check_sequence(config: JobConfig) -> None:
    length, longest, moe = config.data.sequence_length, config.model.max_sequence_length, config.model.moe
    if length < 1:
        raise ConfigError(f"data.sequence_length={length}: set it to at least 1")
    if length > longest:
        raise ConfigError(
            f"data.sequence_length={length} is longer than model.max_sequence_length={longest}: "
            f"set data.sequence_length to at most {longest}"
        )
    if balanced(config.model) and length % (even := even_length(moe)):
        raise ConfigError(
            f"data.sequence_length={length}: with model.moe.routing=balanced every expert is to have as many of its "
            f"tokens, and {moe.n_routed} experts, {moe.top_k} a token, make that a multiple of {even}; set it to one"
        )
