"""`switchyard export RUN --format hf`: a run's weights in a layout that other programs read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from conf.compose import read_job
from launch.published_folder import PublishedFolder
from models.config import ConfigError
from models.flops import count_parameters
from train.init_from import CheckpointWeights, find_checkpoint, typed_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class ExportOrder:
    """The words after `switchyard export`, sorted."""

    run: Path
    to: Path | None
    """None: hf/ in the run's folder."""
    dtype: torch.dtype
    shard_bytes: int
    """Most bytes of tensors in one file; a tensor that is larger gets a file of its own."""

    @classmethod
    def parse(cls, words: Sequence[str]) -> "ExportOrder":
        """Sort `words`.

        Raises:
            ConfigError: for a flag or a value that does not exist, and unless one run is named.
        """
        given = {"--format": "", "--to": "", "--dtype": "float32", "--shard-size": "5GB"}
        runs: list[str] = []
        rest = list(words)
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            if not flag.startswith("-"):
                runs.append(flag + equals + value)
                continue
            if flag not in given:
                raise ConfigError(f"unknown flag {flag}: export has {', '.join(given)}")
            given[flag] = value if equals else rest.pop(0) if rest else ""
            if not given[flag]:
                raise ConfigError(f"{flag} lacks its value (switchyard --help)")
        if len(runs) != 1:
            raise ConfigError("export takes one run or checkpoint folder: switchyard export runs/NAME --format hf")
        if given["--format"] != "hf":
            raise ConfigError(f"--format {given['--format']}: the format is hf (Hugging Face); write --format hf")
        if given["--dtype"] not in DTYPES:
            raise ConfigError(f"--dtype {given['--dtype']}: choose from {', '.join(DTYPES)}")
        to = typed_folder(given["--to"], f"--to {given['--to']}") if given["--to"] else None
        run = typed_folder(runs[0], runs[0])
        return cls(run, to, DTYPES[given["--dtype"]], _bytes(given["--shard-size"]))


def export(words: Sequence[str]) -> int:
    """Write the newest checkpoint of a run, or the one that is named, as a Hugging Face folder.

    Raises:
        ConfigError: if there is no checkpoint, no published architecture says its model, or nothing can be written.
    """
    order = ExportOrder.parse(words)
    checkpoint = find_checkpoint(order.run)
    run = order.run if checkpoint != order.run else order.run.parent.parent
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} has no config.yaml: name the folder of a run, or a step-… folder inside one")
    if checkpoint is None:
        raise ConfigError(f"{run} has no checkpoint: name a run that was trained with checkpoint.at_end=true")
    job = read_job(run / "config.yaml")
    job.model.check()
    weights = CheckpointWeights.open(checkpoint, job.model, str(run))
    weights.verify()
    published = PublishedFolder.plan(job.model, job.data, weights, order.dtype, order.shard_bytes)
    target = order.to or run / "hf"
    published.write(target)
    parameters = count_parameters(job.model).total
    print(f"{target}: {checkpoint.name} as {published.config['model_type']}, {parameters:,} parameters")
    return 0


def _bytes(size: str) -> int:
    match = re.fullmatch(rf"(\d{{1,9}}(?:\.\d{{1,9}})?) ?({'|'.join(UNITS)})", size)
    n_bytes = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if n_bytes < 1:
        raise ConfigError(f"--shard-size {size}: set it to a number with {', '.join(UNITS)}, as 5GB")
    return n_bytes
