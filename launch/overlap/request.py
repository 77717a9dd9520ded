"""The words after `switchyard overlap`, sorted: which knobs, off and on by which words."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from conf.command_line import CommandLine
from conf.compose import Composed, compose
from conf.options import Options
from launch.bench.order import DEFAULTS, ROUNDS
from launch.bench.traced import look_over_traced
from launch.jobs.own_words import refuse_run_folders, take_own, truth
from launch.jobs.points import Point, points_of
from launch.jobs.points_composed import look_over
from launch.jobs.typed_path import typed_path
from launch.local import take_nproc
from launch.overlap.knobs import KNOBS, Knob, Value, typed, why_idle
from launch.ranks import take_count
from models.config import ConfigError
from parallel.mesh import Degrees
from parallel.world import Launch, choose_device

PROGRAM = "switchyard overlap KNOB[,KNOB …] | --all to=FOLDER [nproc=N]"
HELP = f"""
  KNOB               {" ".join(KNOBS)}
  --all              every one of them that the layout takes
  to=FOLDER          overlap.json and the runs go there; the same words again do what is not done yet
  rounds=3           jobs of each side: all once, then all again the other way round; the first is traced
  retry=true         runs again what failed

  off and on are the words that are typed, presets too, with that one knob turned; typed where it is on already, it is
  as far on as that. not typed, these are {" ".join(f"{key}={value}" for key, value in DEFAULTS.items())}
"""
ALL = "--all"
AS_TYPED = "typed"
"""Name of the point that is the typed words alone: one side of every knob that needs no more."""
OURS = {"to": None, "retry": "false"}
"""Words that are no job's, and what they are where they are not given."""


class Sides(NamedTuple):
    """One knob, off and on."""

    values: tuple[Value, Value]
    points: tuple[Point, Point]
    added: list[str]
    """Words that neither side does without, and that were not typed."""


@dataclass(frozen=True)
class Request:
    """Comparisons, all of them found good."""

    folder: Path
    nproc: int
    rounds: int
    retry: bool
    flags: list[str]
    """Of every job's command line."""
    sides: Mapping[str, Sides]
    """By knob."""
    refused: Mapping[str, str]
    """Why other knobs have no sides here, by name."""
    composed: Mapping[str, Composed]
    """By the name of a point."""
    print_config: bool
    """Whether to show the configurations, and nothing else."""

    @property
    def points(self) -> list[Point]:
        """Each once: those of a knob stand beside each other where they can."""
        return list(dict.fromkeys(point for sides in self.sides.values() for point in sides.points))

    @property
    def device(self) -> str:
        """cuda or cpu."""
        first = self.composed[self.points[0].name].config.train.device.value
        return choose_device(first, Launch(0, self.nproc, 0, self.nproc, launched=False)).type

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """Sort `words`, and look every job over.

        Raises:
            ConfigError: for words that the job would not take, and if every knob is refused; `SystemExit` after
                `--help`.
        """
        everything = ALL in words
        line = CommandLine.parse([word for word in words if word != ALL], PROGRAM, HELP)
        knobs = _knobs([word for word in line.overrides if "=" not in word], everything)
        nproc, rest = take_nproc([word for word in line.overrides if "=" in word])
        rounds, rest = take_count(rest, "rounds", "rounds")
        given, rest = take_own(rest, OURS)
        if not given["to"]:
            raise ConfigError("where do results go? write to=FOLDER")
        refuse_run_folders(rest, "overlap", "to=FOLDER")
        jobs = _Jobs(rest, nproc, line.config_dir)
        sides, refused = {}, {}
        for name in knobs:
            try:
                sides[name] = jobs.sides(name, KNOBS[name])
            except ConfigError as error:
                refused[name] = str(error)
        if not sides:
            raise ConfigError(next(iter(refused.values())))
        return cls(
            folder=typed_path(f"to={given['to']}", given["to"]),
            nproc=nproc,
            rounds=rounds or ROUNDS,
            retry=truth("retry", given["retry"]),
            flags=["--config-dir", str(line.config_dir.resolve())] if line.config_dir else [],
            sides=sides,
            refused=refused,
            composed=jobs.good,
            print_config=line.print_config,
        )


class _Jobs:
    """The jobs that `words` and a turned knob come to."""

    def __init__(self, words: Sequence[str], nproc: int, config_dir: Path | None) -> None:
        """Raises ConfigError for words that no job takes, or that stand for several."""
        self._words, self._nproc, self._config_dir = words, nproc, config_dir
        self.good: dict[str, Composed] = {}
        """By the name of a point, what was looked over."""
        self._config = self._look_over(self._point(AS_TYPED, [])).config

    def sides(self, name: str, knob: Knob) -> Sides:
        """Off and on.

        Raises:
            ConfigError: if the layout does not take one of them, or the knob has nothing to hide there.
        """
        values = knob.sides(getattr(self._config.overlap, name))
        degrees = Degrees.resolve(self._config.strategy, self._nproc)
        if idle := why_idle(name, self._config.strategy, degrees):
            raise ConfigError(idle)
        keys = {word.partition("=")[0] for word in self._words}
        added = [f"{key}={needed}" for key, needed in knob.needs.items() if key not in keys]
        points = [self._side(name, value, added) for value in values]
        for point in points:
            config = self._look_over(point).config
            if name == "checkpoint" and config.train.steps < config.checkpoint.every + 3:
                raise ConfigError(
                    f"overlap.checkpoint: of train.steps={config.train.steps} the last two are traced, and a save is in"
                    f" the step after it: set train.steps={config.checkpoint.every + 3} or more"
                )
        return Sides(values, (points[0], points[1]), added)

    def _side(self, name: str, value: Value, added: Sequence[str]) -> Point:
        more = list(added)
        if value != getattr(self._config.overlap, name):
            more.append(f"overlap.{name}={typed(value)}")
        return self._point(f"{name}={typed(value)}" if more else AS_TYPED, more)

    def _point(self, name: str, more: Sequence[str]) -> Point:
        points = points_of(self._words, {name: more}, Options.find(self._config_dir), DEFAULTS)
        if len(points) > 1:
            raise ConfigError(f"{', '.join(points[0].values)}: overlap takes one layout at a time; name one value")
        return points[0]

    def _look_over(self, point: Point) -> Composed:
        if point.name not in self.good:
            composed = compose(point.words, self._config_dir)
            look_over(composed.config, self._nproc)
            steps = composed.config.train.steps
            if steps < 4:
                raise ConfigError(
                    f"overlap with train.steps={steps}: the first step warms up, and the last two are traced; set "
                    "train.steps to 4 or more"
                )
            look_over_traced(point.words, composed.config, steps, self._nproc, self._config_dir, asked_by="overlap")
            self.good[point.name] = composed
        return self.good[point.name]


def _knobs(named: Sequence[str], everything: bool) -> list[str]:
    """Those that are asked for, each once."""
    there = list(KNOBS)
    asked = [name for word in named for name in word.split(",") if name]
    if everything == bool(asked):
        raise ConfigError(f"which knob? name one or more of {', '.join(there)}, or write {ALL}")
    for name in asked:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"no knob {name!r}; {hint}choose from {', '.join(there)}, or write {ALL}")
    return there if everything else list(dict.fromkeys(asked))
