"""A job that one rank alone has looked at: what can be refused is, before any rank waits for another."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conf.compose import read_job, schema_defaults
from conf.schema import JobConfig, validate
from models.config import ConfigError
from models.hf_config import function_values, word
from models.triton_here import triton_lacks
from parallel.mesh import Degrees
from parallel.nodes import experts_across_nodes
from parallel.world import Launch, choose_device
from train.checkpoint.folder import check_steps_left, newest_checkpoint
from train.data.corpus import open_corpus
from train.data.source import Corpus
from train.faults.restarts import restarted
from train.faults.stop import STOP_FILE
from train.init_from import CheckpointWeights, Weights, find_weights
from train.run_folder import check_same_job, named_folder
from train.start.device_check import check_device


@dataclass(frozen=True)
class Accepted:
    """A job that one rank alone found nothing wrong with."""

    config: JobConfig
    plain: dict[str, Any]
    """The same as plain values."""
    device: torch.device
    corpus: Corpus
    folder: Path | None
    """None: to be named by the start of the run."""
    init_from: Weights | None
    """To start from; None: from the seed."""


def accept(config: JobConfig, plain: dict[str, Any], launch: Launch) -> Accepted:
    """Look at everything that can be looked at without the other ranks.

    Raises:
        ConfigError: one line that says what to change.
    """
    validate(config, launch.world_size, launch.local_world_size)
    degrees = Degrees.resolve(config.strategy, launch.world_size)
    if launch.rank == 0 and (note := experts_across_nodes(config.strategy, degrees, launch.local_world_size)):
        print(f"switchyard: {note}", file=sys.stderr)
    device = choose_device(config.train.device.value, launch)
    check_device(config, degrees, device)
    if device.type == "cuda" and launch.rank == 0 and (lacks := triton_lacks()):
        print(f"switchyard: kernels that are auto are torch's, which are slower: {lacks}", file=sys.stderr)
    corpus = open_corpus(config.data, config.model.vocab_size, config.train.seed)
    folder = named_folder(config.run)
    if folder:
        check_same_job(folder, plain, corpus.fingerprint, schema_defaults())
        check_steps_left(folder / "checkpoints", config.train.steps)
        if (folder / STOP_FILE).exists() and not restarted():  # one that had begun stops in order
            raise ConfigError(f"{folder / STOP_FILE} asks this run to stop: remove it to go on")
    starting = not folder or newest_checkpoint(folder / "checkpoints") is None
    init_from = find_weights(config.model.init_from, config.model) if config.model.init_from and starting else None
    if isinstance(init_from, CheckpointWeights) and launch.rank == 0:
        _say_what_is_other(init_from, config)
    return Accepted(config, plain, device, corpus, folder, init_from)


def _say_what_is_other(weights: CheckpointWeights, config: JobConfig) -> None:
    """Shapes fit; but a model that turns, scores or weighs otherwise is another function of the same weights. It may be
    meant (a longer context by YaRN), so it is said and not refused."""
    path = weights.checkpoint.parents[1] / "config.yaml"
    if not path.exists():
        return
    try:
        here, there = function_values(config.model), function_values(read_job(path).model)
    except ConfigError:  # another version's; its weights fit all the same
        return
    other = [f"model.{key}={word(there[key])}" for key in there if here.get(key, there[key]) != there[key]]
    if other:
        print(
            f"switchyard: model.init_from={config.model.init_from} was trained with {' '.join(other)}", file=sys.stderr
        )
