"""Another framework's program beside our points: which words it reads, and which of ours it cannot follow."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from conf.schema import JobConfig
from launch.bench.points import Point
from models.config import ConfigError
from models.hf_architecture import architecture_of
from parallel.config import Dtype
from train.data.config import DataSource

PEERS = {"transformers": Path(__file__).resolve().parents[2] / "benchmarks" / "peer_transformers.py"}
"""By name, the program that torchrun starts; it takes our words."""
READ = ("model", "data", "optim", "precision", "train")
"""First parts of the keys that a peer follows. Its layout is its own: data parallel, sharded."""


def peer_points(peer: str, points: Sequence[Point]) -> list[Point]:
    """What `peer` runs beside `points`: one job for each different set of words that it reads."""
    followed = {_followed(point): point.name for point in reversed(points)}  # the first of equals gives its name
    return [
        Point(peer if len(followed) == 1 else f"{peer}-{name}", words) for words, name in reversed(followed.items())
    ]


def check_peer(config: JobConfig) -> None:
    """Refuse what the peer cannot do.

    Raises:
        ConfigError: naming the value to change, or the package to install.
    """
    if not PEERS["transformers"].exists():
        raise ConfigError("peer=transformers is a program in benchmarks/, which is in the repository, not in a package")
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("peer=transformers needs transformers: pip install 'switchyard[hf]'")
    architecture_of(config.model)
    if config.model.init_from is not None:
        raise ConfigError("peer=transformers starts from weights of its own: set model.init_from=null")
    if config.model.moe.has_router_loss:
        raise ConfigError("peer=transformers has no loss of the router: set model.moe.*_loss_weight to 0")
    if config.data.source is not DataSource.synthetic:
        raise ConfigError(f"peer=transformers learns random tokens: set data=synthetic, not {config.data.source.value}")
    if config.precision.compute is Dtype.float64:
        raise ConfigError("peer=transformers has no float64: set precision=bf16 or fp32")


def _followed(point: Point) -> tuple[str, ...]:
    words = [word for word in point.words if word.partition("=")[0].split(".")[0] in READ]
    return (*words, "strategy=fsdp", "checkpoint=off", "logging=off")
