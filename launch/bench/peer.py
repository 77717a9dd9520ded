"""Another framework's program beside our points: which words it reads, and which of ours it cannot follow."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.schema import JobConfig
from launch.jobs.points import Point
from models.config import ConfigError
from models.hf_architecture import architecture_of
from parallel.config import Dtype, Matmul, Reduction
from train.data.config import DataSource
from train.init_from import find_weights
from train.published_weights import PublishedWeights

PEER = "transformers"
"""The only one."""
PEER_PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "peer_transformers.py"
"""What torchrun starts; it takes our words."""
READ = ("model", "data", "optim", "precision", "train")
"""First parts of the keys that the peer follows. Its layout is its own: data parallel, sharded."""
OURS = (
    "model.expert_backend",
    "model.row_backend",
    "model.loss_backend",
    "model.loss_chunk_size",
    "optim.one_pass",
    "optim.moments",
    "optim.halves",
    "precision.matmul",
)
"""Keys of these that say how we compute what it computes in its own way."""


def peer_points(points: Sequence[Point], configs: Mapping[str, JobConfig]) -> list[Point]:
    """What the peer runs beside `points`, whose `configs` are by name: one job for each different set of words that it
    reads."""
    # The first of equals gives its name.
    followed = {_followed(point, configs[point.name]): point.name for point in reversed(points)}
    return [
        Point(PEER if len(followed) == 1 else f"{PEER}-{name}", words) for words, name in reversed(followed.items())
    ]


def check_peer(config: JobConfig) -> None:
    """Refuse what the peer cannot do.

    Raises:
        ConfigError: naming the value to change, or the package to install.
    """
    if not PEER_PROGRAM.exists():
        raise ConfigError("peer=transformers is a program in benchmarks/, which is in the repository, not in a package")
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("peer=transformers needs transformers: pip install 'switchyard[hf]'")
    architecture_of(config.model)
    path = config.model.init_from
    if path is not None and not isinstance(find_weights(path, config.model), PublishedWeights):
        raise ConfigError(
            f"model.init_from={path}: peer=transformers reads Hugging Face folders; set it to one (switchyard export), "
            "or to null"
        )
    if config.model.moe.has_router_loss:
        raise ConfigError("peer=transformers has no loss of the router: set model.moe.*_loss_weight to 0")
    if config.data.source is not DataSource.synthetic:
        raise ConfigError(f"peer=transformers learns random tokens: set data=synthetic, not {config.data.source.value}")
    if config.precision.compute is Dtype.float64:
        raise ConfigError("peer=transformers has no float64: set precision=bf16 or fp32")
    if config.precision.matmul is Matmul.fp8:
        raise ConfigError(
            "peer=transformers multiplies in bfloat16: set precision=bf16 precision.matmul=fp8, of which it reads the "
            "first"
        )


def _followed(point: Point, config: JobConfig) -> tuple[str, ...]:
    """Besides READ: whether steps are divided, and where ours is sharded as the peer is, what it holds for backward."""
    keys = [word.partition("=")[0] for word in point.words]
    words = [word for word, key in zip(point.words, keys, strict=True) if key.split(".")[0] in READ and key not in OURS]
    keeps = config.strategy.reduction is Reduction.shard and not config.overlap.reshard_after_forward
    held = ["overlap.reshard_after_forward=false"] if keeps else []
    undivided = [] if config.measure.clock else ["measure=off"]
    return (*words, "strategy=fsdp", "checkpoint=off", "logging=off", *held, *undivided)
