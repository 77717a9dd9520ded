"""Start the ranks of one job on this machine, through torchrun."""

import os
import subprocess
import sys
from collections.abc import Sequence

import torch

from conf.command_line import CommandLine
from conf.compose import compose
from conf.schema import validate
from models.config import ConfigError


def train(words: Sequence[str]) -> int:
    """`switchyard train [nproc=N] key=value …`: check the words, then become torchrun's parent until it ends.

    Raises:
        ConfigError: for whatever the job would refuse, before a process is started.
    """
    nproc, rest = take_nproc(words)
    line = CommandLine.parse(rest, program="switchyard train [nproc=N]")
    composed = compose(line.overrides, line.config_dir)
    if line.print_config:
        print(composed.yaml, end="")
        return 0
    validate(composed.config, nproc)
    try:
        return subprocess.run(torchrun_command(nproc, rest), env=rank_environment(nproc)).returncode
    except KeyboardInterrupt:
        return 130


def take_nproc(words: Sequence[str]) -> tuple[int, list[str]]:
    """The value of `nproc=N` among `words`, or its default; and the other words.

    Raises:
        ConfigError: unless N is a number of at least 1.
    """
    given = [word.removeprefix("nproc=") for word in words if word.startswith("nproc=")]
    rest = [word for word in words if not word.startswith("nproc=")]
    if not given:
        return torch.cuda.device_count() or 2, rest
    if not given[-1].isdigit() or int(given[-1]) < 1:
        raise ConfigError(f"nproc={given[-1]}: set it to the number of ranks, at least 1")
    return int(given[-1]), rest


def torchrun_command(nproc: int, words: Sequence[str]) -> list[str]:
    """The command that starts `nproc` ranks of `python -m train words…` on this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    return [*torchrun, "-m", "train", *words]


def rank_environment(nproc: int) -> dict[str, str]:
    """This environment, with the cores shared out among `nproc` ranks unless the user has."""
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    return {"OMP_NUM_THREADS": str(threads)} | os.environ
