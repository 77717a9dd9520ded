"""`switchyard schedule NAME pp=P microbatches=M`: a pipeline schedule, drawn and timed on paper; `schedule compare …`
times them all."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.picture_file import write_picture
from launch.schedule_drawing import draw
from launch.schedule_picture import Picture
from launch.schedule_words import time, whole
from models.config import ConfigError
from parallel.pipeline.action import Schedule
from parallel.pipeline.schedules import ScheduleName, build_schedule
from parallel.pipeline.simulator import Costs, Simulation, simulate

USAGE = "switchyard schedule dualpipe pp=4 microbatches=8"
COSTS = ("forward", "input", "weight", "pair", "send")
NUMBERS = ("pp", "microbatches", "stages_per_rank")
PICTURES = ("--svg", "--png")


@dataclass(frozen=True)
class ScheduleOrder:
    """The words after `switchyard schedule`, sorted."""

    name: ScheduleName
    pp: int
    micro_batches: int
    stages_per_rank: int | None
    costs: Costs
    svg: Path | None
    png: Path | None

    @classmethod
    def parse(cls, words: Sequence[str]) -> "ScheduleOrder":
        """Sort `words`.

        Raises:
            ConfigError: for a word or a value that does not exist, and unless a schedule and its sizes are given.
        """
        names: list[str] = []
        given: dict[str, str] = {}
        rest = list(words)
        while rest:
            key, equals, value = rest.pop(0).partition("=")
            if key.startswith("-") and key not in PICTURES:
                raise ConfigError(f"unknown flag {key}: schedule has {' and '.join(PICTURES)}")
            if key in PICTURES:
                given[key] = value if equals else rest.pop(0) if rest else ""
                if not given[key]:
                    raise ConfigError(f"{key} lacks its file: write {key} FILE")
            elif not equals:
                names.append(key)
            elif key in (*NUMBERS, *COSTS):
                given[key] = value
            else:
                raise ConfigError(f"{key}={value}: schedule takes {', '.join((*NUMBERS, *COSTS))}")
        for key in ("pp", "microbatches"):
            if key not in given:
                raise ConfigError(f"schedule needs {key}=…: {USAGE}")
        stages_per_rank = whole("stages_per_rank", given["stages_per_rank"]) if "stages_per_rank" in given else None
        costs: dict[str, Any] = {key: time(key, given[key], may_be_0=key == "send") for key in COSTS if key in given}
        return cls(
            _name(names),
            whole("pp", given["pp"]),
            whole("microbatches", given["microbatches"]),
            stages_per_rank,
            Costs(**costs),
            *(Path(os.path.expanduser(given[flag])) if flag in given else None for flag in PICTURES),
        )


def schedule(words: Sequence[str]) -> int:
    """Print the schedule that `words` ask for, in time, with its makespan, bubble and activations; draw it into files.

    Raises:
        ConfigError: for words that make no sense, a schedule that cannot be, or a file that cannot be written.
    """
    if words[:1] == ["compare"]:
        from launch.schedule_compare import compare  # reads runs, and what reads those takes a second to import

        return compare(words[1:])
    order = ScheduleOrder.parse(words)
    table = build_schedule(order.name, order.pp, order.micro_batches, order.stages_per_rank)
    simulation = simulate(table, order.costs)
    console = Console()
    width = console.width if console.is_terminal else None
    for line in draw(table, simulation, width):
        # A file takes lines of any length; only a terminal would break them.
        console.print(line, soft_wrap=True)
    for text in summary(table, simulation, order.costs):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if order.svg or order.png:
        picture = Picture(table, simulation)
        if order.svg:
            write_picture(order.svg, "--svg", picture.svg().encode())
            print(order.svg)
        if order.png:
            write_picture(order.png, "--png", picture.png())
            print(order.png)
    return 0


def summary(table: Schedule, simulation: Simulation, costs: Costs) -> list[str]:
    """What the drawing amounts to, in lines."""
    stages = f"{table.n_stages} stages" + (f" in each of {table.n_chains} chains" if table.n_chains > 1 else "")
    ideal = max(simulation.busy)
    pair = costs.forward + costs.input + costs.weight if costs.pair is None else costs.pair
    return [
        f"{table.name}: {table.n_ranks} ranks, {stages}, {table.n_micro_batches} micro-batches",
        f"makespan {simulation.makespan:g}, ideal {ideal:g} (no rank ever idle), bubble {simulation.bubble:.1%}",
        f"bubble by rank {' '.join(f'{bubble:.1%}' for bubble in simulation.bubble_of_rank)}",
        f"most micro-batches in flight, summed over a rank's stages {' '.join(map(str, simulation.peak_in_flight))}",
        *(["capitals are a rank's first stage, small letters any other"] if len(table.stages_of_rank(0)) > 1 else []),
        f"one stage takes forward={costs.forward:g} input={costs.input:g} weight={costs.weight:g} pair={pair:g} "
        f"send={costs.send:g}",
    ]


def _name(names: Sequence[str]) -> ScheduleName:
    known = [name.value for name in ScheduleName]
    if len(names) != 1:
        raise ConfigError(f"schedule takes one name out of {', '.join(known)}: {USAGE}")
    if names[0] in ScheduleName.__members__:  # as strategy.schedule has it
        return ScheduleName[names[0]]
    if names[0] not in known:
        raise ConfigError(f"no schedule {names[0]!r}: choose from {', '.join(known)}")
    return ScheduleName(names[0])
