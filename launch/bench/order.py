"""The words after `switchyard bench`, sorted."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.command_line import CommandLine
from conf.options import Options
from conf.schema import JobConfig
from launch.bench.limits import Limits, read_limits
from launch.bench.peer import PEER, check_peer, peer_points
from launch.bench.traced import in_second_half, look_over_traced
from launch.jobs.own_words import refuse_run_folders, take_own, truth
from launch.jobs.points import Point, check_names, points_of
from launch.jobs.points_composed import compose_points, look_over, naming
from launch.jobs.typed_path import typed_path
from launch.jobs.typed_yaml import read_typed_yaml
from launch.local import take_nproc
from launch.ranks import take_count
from models.config import ConfigError
from parallel.world import Launch, choose_device

DEFAULTS = {
    "data": "synthetic",  # as for the peer; no disk slows it
    "checkpoint": "off",
    "logging": "off",
    "train.steps": "40",
    "train.log_every": "5",  # reading a loss drains the device
    "train.eval_sequences": "0",
}
"""What a point's job is where its words do not say otherwise."""
COUNTED = DEFAULTS | {"measure.counts": "true"}
"""The same in a bench."""
PROGRAM = "switchyard bench to=FOLDER [nproc=N]"
HELP = f"""
  to=FOLDER          bench.json, bench.svg and the runs go there; the same words again do what is not done yet
  strategy=ddp,fsdp  commas in any value make points: one for each combination
  configs=FILE.yaml  points by name: a mapping of names to lists of words
  rounds=3           jobs of each point: all points once, then all again the other way round
  peer=transformers  beside them, the same model in Hugging Face transformers under FSDP2
  peer.compile=false and its layers not compiled
  trace=true         a deep trace of one step of each, after the rounds: kernels beside what the machine can do
  limits=FILE.yaml   counts of one step by point, as fast: {{host_waits: 0, graph_breaks: 0}}; more of one exits 1
  retry=true         runs again what failed

  not typed, these are {" ".join(f"{key}={value}" for key, value in COUNTED.items())}
"""
ROUNDS = 3
RENAME = "give each a name of its own in configs=FILE"
OURS = {
    "to": None,
    "configs": None,
    "peer": None,
    "limits": None,
    "peer.compile": "true",
    "trace": "false",
    "retry": "false",
}
"""Words that are no job's, and what they are where they are not given."""


@dataclass(frozen=True)
class Order:
    """A comparison, all of it found good."""

    folder: Path
    nproc: int
    rounds: int
    trace: bool
    retry: bool
    limits: Limits
    points: list[Point]
    peers: list[Point]
    """What the peer runs."""
    peer_compile: bool
    flags: list[str]
    """Of every job's command line."""
    configs: dict[str, JobConfig]
    """By the name of a point or peer."""
    yaml: str | None
    """All configurations, if they were asked for and nothing else."""

    @property
    def device(self) -> str:
        """cuda or cpu."""
        first = next(iter(self.configs.values())).train.device.value
        return choose_device(first, Launch(0, self.nproc, 0, self.nproc, launched=False)).type

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Order":
        """Sort `words`, and look every point over.

        Raises:
            ConfigError: for words that one of the jobs would not take; `SystemExit` after `--help`.
        """
        line = CommandLine.parse(words, PROGRAM, HELP)
        nproc, rest = take_nproc(line.overrides)
        rounds, rest = take_count(rest, "rounds", "rounds")
        given, rest = take_own(rest, OURS)
        if not given["to"]:
            raise ConfigError("where do results go? write to=FOLDER")
        refuse_run_folders(rest, "bench", "to=FOLDER")
        if given["peer"] not in (None, PEER):
            raise ConfigError(f"peer={given['peer']}: set it to {PEER}, or leave it out")
        configs = _read_configs(given["configs"]) if given["configs"] else None
        points = points_of(rest, configs, Options.find(line.config_dir), COUNTED)
        trace = truth("trace", given["trace"])
        check_names(points, RENAME)
        composed = compose_points(points, line.config_dir)
        for point in [] if line.print_config else points:
            with naming(point, points):
                look_over(composed[point.name].config, nproc)
                if trace:
                    config = composed[point.name].config
                    step = in_second_half(config)
                    look_over_traced(point.words, config, step, nproc, line.config_dir, asked_by="trace=true")
        peers = peer_points(points, {name: one.config for name, one in composed.items()}) if given["peer"] else []
        check_names([*points, *peers], RENAME)
        composed |= compose_points(peers, line.config_dir)
        for point in [] if line.print_config else peers:
            with naming(point, points):
                look_over(composed[point.name].config, nproc)
                check_peer(composed[point.name].config)
        return cls(
            folder=typed_path(f"to={given['to']}", given["to"]),
            nproc=nproc,
            rounds=rounds or ROUNDS,
            trace=trace,
            retry=truth("retry", given["retry"]),
            limits=read_limits(given["limits"], [point.name for point in points]) if given["limits"] else {},
            points=points,
            peers=peers,
            peer_compile=truth("peer.compile", given["peer.compile"]),
            flags=["--config-dir", str(line.config_dir.resolve())] if line.config_dir else [],
            configs={name: one.config for name, one in composed.items()},
            yaml="".join(f"# {name}\n{one.yaml}" for name, one in composed.items()) if line.print_config else None,
        )


def as_typed(command: str, words: Sequence[str]) -> str:
    """The command that had these words, to be pasted."""
    return shlex.join(["switchyard", command, *words])


def _read_configs(typed: str) -> dict[str, list[str]]:
    named, read = read_typed_yaml("configs", typed)
    if not (isinstance(read, dict) and read and all(_are_words(words) for words in read.values())):
        raise ConfigError(f"{named}: write a mapping of names to lists of words, as fast: [strategy=ddp]")
    return {str(name): words for name, words in read.items()}


def _are_words(words: object) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)
