"""Which text a run trains on, as configuration."""

from dataclasses import dataclass
from enum import Enum


class DataSource(Enum):
    """Where tokens come from."""

    stdlib = "stdlib"
    synthetic = "synthetic"


@dataclass
class DataConfig:
    """What is read, and how long a sample is."""

    name: str = "stdlib"
    """Name of this choice, as reports show it."""

    source: DataSource = DataSource.stdlib
    """`stdlib`: the bytes of Python's own standard library; `synthetic`: endless random tokens."""

    sequence_length: int = 256
    """Tokens of context in a sample; a sample holds one more, the last target."""
