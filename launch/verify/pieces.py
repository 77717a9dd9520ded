"""What ranks hold, put together again: parts of arrays by logical name."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.initialise import Shard


class Piece(NamedTuple):
    """A part of an array."""

    array: np.ndarray
    shape: tuple[int, ...]
    """Of the whole."""
    offset: tuple[int, ...]


def pieces(state: Mapping[str, Shard]) -> dict[str, Piece]:
    """Copies on the host, with where each lies in the whole."""
    return {
        name: Piece(_array(shard.local.detach()), tuple(shard.global_shape), tuple(shard.offset))
        for name, shard in state.items()
    }


def _array(x: Tensor) -> np.ndarray:
    """numpy has no bfloat16, which float32 holds exactly."""
    wide = x.float() if x.dtype is torch.bfloat16 else x
    return wide.cpu().numpy().copy()


def merge(by_rank: Iterable[Mapping[str, Piece]]) -> dict[str, np.ndarray]:
    """Whole arrays from all ranks' parts.

    Raises:
        ValueError: if an element is on no rank, or two ranks that hold it differ in a bit.
    """
    wholes: dict[str, np.ndarray] = {}
    filled: dict[str, np.ndarray] = {}
    for parts in by_rank:
        for name, piece in parts.items():
            whole = wholes.setdefault(name, np.zeros(piece.shape, piece.array.dtype))
            there = filled.setdefault(name, np.zeros(piece.shape, bool))
            box = tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.array.shape, strict=True))
            known = there[box]
            if not np.array_equal(whole[box][known], piece.array[known], equal_nan=True):
                raise ValueError(f"{name}: two ranks that hold the same part differ, so one of them drifts away")
            whole[box], there[box] = piece.array, True
    for name, there in filled.items():
        if not there.all():
            raise ValueError(f"{name}: no rank has all of it")
    return wholes
