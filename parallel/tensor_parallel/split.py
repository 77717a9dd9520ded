"""Which part of a parameter a rank holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """Part `index` of `count` equal parts along dimension `dim`."""

    dim: int
    index: int
    count: int
