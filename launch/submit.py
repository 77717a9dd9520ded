"""`switchyard submit nodes=N gpus_per_node=G key=value …`: a job into SLURM's queue, once its words are found good.

A wrong word would otherwise be found after hours in the queue. What is queued is launch/slurm.sbatch.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from conf.command_line import CommandLine
from conf.compose import compose
from conf.schema import JobConfig, validate
from launch.ranks import code_environment, take_count
from models.config import ConfigError
from parallel.mesh import Degrees
from parallel.nodes import experts_across_nodes
from train.config import Device
from train.start.device_check import check_kind

SCRIPT = Path(__file__).with_name("slurm.sbatch")
PROGRAM = "switchyard submit nodes=N gpus_per_node=G [--dry-run] [--partition=P --time=T …]"
HELP = """
  nodes=N            machines
  gpus_per_node=G    of each, one rank on each GPU; or ranks_per_node=R, without GPUs
  --dry-run          prints the sbatch command, and queues nothing
  --partition=P …    any other flag, written with its =, goes to sbatch
"""
JOB_FLAGS = ("--cfg", "--config-dir")
"""Flags that the job's own command line has, too."""
OURS = {
    "--nodes": "nodes=N",
    "--gpus-per-node": "gpus_per_node=G",
    "--gpus": "gpus_per_node=G",
    "--gres": "gpus_per_node=G",
    "--ntasks-per-node": "gpus_per_node=G or ranks_per_node=R",
    "--ntasks": "nodes=N with gpus_per_node=G or ranks_per_node=R",
    "--export": "nothing: the job gets this shell's variables",
}
"""sbatch's flags that we set, and what to write instead."""


@dataclass(frozen=True)
class Order:
    """The words after `switchyard submit`, sorted."""

    nodes: int
    ranks_per_node: int
    gpus: bool
    """Whether each rank asks for one."""
    dry_run: bool
    sbatch_flags: list[str]
    job_words: list[str]

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Order":
        """Sort `words`.

        Raises:
            ConfigError: without a number of nodes and of ranks, and for a flag that is not sbatch's to have.
        """
        nodes, rest = take_count(words, "nodes", "nodes")
        gpus_per_node, rest = take_count(rest, "gpus_per_node", "GPUs of each node")
        ranks_per_node, rest = take_count(rest, "ranks_per_node", "ranks on each node")
        if (gpus_per_node is None) == (ranks_per_node is None):
            raise ConfigError(
                "how many ranks a node? write gpus_per_node=G, or ranks_per_node=R for nodes without GPUs"
            )
        if nodes is None:
            raise ConfigError("how many nodes? write nodes=N")
        flags, job_words, dry_run = [], [], False
        while rest:
            word = rest.pop(0)
            name = word.partition("=")[0]
            if word == "--dry-run":
                dry_run = True
            elif name == "--dry-run":
                raise ConfigError(f"{word}: write --dry-run")
            elif name in OURS:
                raise ConfigError(f"{word}: write {OURS[name]}")
            elif word in JOB_FLAGS:
                job_words += [word, *rest[:1]]
                rest = rest[1:]
            elif word.startswith("--") and name not in JOB_FLAGS:
                if rest and name == word and "=" not in rest[0] and not rest[0].startswith("-"):
                    raise ConfigError(f"{word} {rest[0]}: write {word}={rest[0]}")
                flags.append(word)
            elif word.startswith("-") and name not in JOB_FLAGS:
                raise ConfigError(f"{word}: sbatch's flags are taken in their long form, as --partition=P")
            else:
                job_words.append(word)
        return cls(nodes, gpus_per_node or ranks_per_node or 0, gpus_per_node is not None, dry_run, flags, job_words)

    def command(self) -> list[str]:
        """What queues it."""
        gpus = [f"--gpus-per-node={self.ranks_per_node}"] if self.gpus else []
        return [
            *("sbatch", f"--nodes={self.nodes}", *gpus, "--export=ALL", *self.sbatch_flags),
            *(str(SCRIPT), *self.job_words),
        ]

    def as_typed(self) -> str:
        """The same for a shell, with its environment."""
        variables = [f"{name}={value}" for name, value in self.environment().items()]
        return shlex.join(["env", *variables, *self.command()])

    def environment(self) -> dict[str, str]:
        """What the script reads, and its ranks."""
        ranks = str(self.ranks_per_node)
        return {"RANKS_PER_NODE": ranks, "SWITCHYARD_PYTHON": sys.executable, **code_environment()}


def submit(words: Sequence[str]) -> int:
    """Look the words over for the ranks that they ask for, then call sbatch.

    Returns:
        sbatch's exit code.

    Raises:
        ConfigError: for words that no rank would take, and where there is no sbatch.
    """
    if {"--help", "-h"} & set(words):
        CommandLine.parse(["--help"], program=PROGRAM, more=HELP)
    order = Order.parse(words)
    line = CommandLine.parse(order.job_words, program=PROGRAM)
    composed = compose(line.overrides, line.config_dir)
    if line.print_config:
        print(composed.yaml, end="")
        return 0
    check_submitted(composed.config, order)
    if order.dry_run:
        print(order.as_typed())
        return 0
    return queue(order).returncode


def queue(order: Order, flags: Sequence[str] = (), output: int | None = None) -> "subprocess.CompletedProcess[str]":
    """Call sbatch, with more `flags`; its standard output goes to `output`, as subprocess has it.

    Raises:
        ConfigError: where there is none.
    """
    program, *rest = order.command()
    try:
        environment = os.environ | order.environment()
        return subprocess.run([program, *flags, *rest], env=environment, stdout=output, text=True)
    except FileNotFoundError as error:
        raise ConfigError("no sbatch here: submit where SLURM is, or look at the command with --dry-run") from error


def check_submitted(config: JobConfig, order: Order) -> None:
    """Refuse what the nodes of `order` cannot run; what they can, but slowly, is said.

    Raises:
        ConfigError: one line that says what to change.
    """
    world_size = order.nodes * order.ranks_per_node
    validate(config, world_size, order.ranks_per_node)
    if config.train.device is Device.cuda and not order.gpus:
        raise ConfigError("train.device=cuda with ranks_per_node, which asks for no GPU: write gpus_per_node=G")
    degrees = Degrees.resolve(config.strategy, world_size)
    check_kind(config, degrees, torch.device("cuda" if order.gpus and config.train.device is not Device.cpu else "cpu"))
    if note := experts_across_nodes(config.strategy, degrees, order.ranks_per_node):
        print(f"switchyard: {note}", file=sys.stderr)
