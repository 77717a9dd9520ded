"""One job of a comparison: one point in one round, from its beginning always: half a run measures nothing.

Its folder is POINT-rN, or POINT-trace where it is traced, beside the rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launch.jobs.points import Point
from launch.jobs.torchrun_job import TRAIN, TorchrunJob


@dataclass(frozen=True, kw_only=True)
class Job(TorchrunJob):
    """What one torchrun runs."""

    point: Point
    round: int | None
    """1 for the first; None: of none, a step is traced, which slows it."""

    @classmethod
    def of(
        cls,
        point: Point,
        number: int | None,
        runs: Path,
        nproc: int,
        program: Sequence[str] = TRAIN,
        more: Sequence[str] = (),
    ) -> Self:
        """The job of `point` in round `number`; `more` are words of it alone, and flags."""
        name = f"{point.name}-{'trace' if number is None else f'r{number}'}"
        return cls(name, (*point.words, *more), runs, nproc, program, point=point, round=number)
