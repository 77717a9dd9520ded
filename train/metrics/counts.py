"""What a run can be held to without a clock: graphs that torch.compile made, and what a step said between ranks.

Two runs of the same words have the same, on whatever machine: what differs is a change, never noise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from train.data.atomic_json import read_json, write_json

COUNTS_FILE = "counts.json"
"""In a run's folder."""


class Said(NamedTuple):
    """Collectives of one kind, operation and size of group in one step, over all ranks."""

    kind: str
    operation: str
    group_size: int
    calls: int
    """A call is one rank's: an all-reduce over 4 ranks counts 4."""
    n_bytes: int
    """Put in by the ranks that called."""


@dataclass(frozen=True)
class RunCounts:
    """Of one attempt, on record when it ends."""

    graphs: int
    """Made by rank 0 from the attempt's start to its end, evaluations' too; 0 where nothing is compiled."""
    late_graphs: int
    """Of these, after the first step: what met another shape or dtype than before."""
    graph_breaks: int
    said: Sequence[Said] | None
    """In the attempt's first step; None of an engine whose collectives are its own."""

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all. Raises OSError."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "RunCounts | None":
        """What was written to `path`; None if nothing was, or by another version."""
        try:
            read = cls(**(read_json(path) or {}))
            return replace(read, said=None if read.said is None else [Said(*one) for one in read.said])
        except TypeError:
            return None
