"""Same start everywhere: a parameter's initial value is a function of (seed, logical name, logical expert, index).

A counter-based generator: element i of a tensor hashes (key, i), so each rank fills just the elements it holds, and
every layout starts from the same bits. No rank ever holds a full copy.

The hash is SplitMix64 (Steele, Lea, Flood 2014): `mix(key + i · golden)`. torch's int64 arithmetic wraps, as needed;
its right shift is arithmetic, so the sign's copies are masked off.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.block import DispatchPart
from models.experts import STACKED, RoutedExperts
from models.router import Router

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
TRUNCATION = 3.0  # standard deviations; ±3σ keeps 99.7 % of a normal and no outlier weight
CHUNK = 1 << 24  # elements hashed at a time: 128 MiB per int64 temporary


@dataclass(frozen=True)
class Shard:
    """The part of a tensor that is here: its storage, and where it begins in the whole."""

    local: Tensor
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]


def whole(name: str, parameter: Tensor) -> Shard:
    """The `shard_of` of a model that one process holds."""
    return Shard(parameter, tuple(parameter.shape), (0,) * parameter.dim())


def expert_parts(module: RoutedExperts, leaf: str, shard: Shard) -> Iterator[tuple[int, str, Shard]]:
    """What `shard` has of a stacked parameter of `module`, matrix by matrix, as views: the logical expert, the name of
    its matrix (see STACKED), and the part of it that is here."""
    for i in range(shard.local.shape[0]):
        expert = module.expert_of_slot[shard.offset[0] + i]
        if leaf not in STACKED:
            yield expert, leaf, Shard(shard.local[i], shard.global_shape[1:], shard.offset[1:])
            continue
        for j, name in enumerate(STACKED[leaf]):
            yield expert, name, Shard(shard.local[i, j], shard.global_shape[2:], shard.offset[2:])


@torch.no_grad()
def initialise(model: nn.Module, seed: int, shard_of: Callable[[str, Tensor], Shard] = whole) -> None:
    """Fill `model`'s parameters (materialised, of any layout) and reset its buffers. `shard_of` says, of a parameter by
    name, where the values of this rank's part go.

    Modules that own parameters say by `init_std` how: a deviation for each of their names, or None for ones.
    """
    reset_buffers(model)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            logical_name = f"{path}.{name}"
            fill_parameter(module, logical_name, shard_of(logical_name, parameter), seed)


def reset_buffers(model: nn.Module) -> None:
    """Start `model`'s buffers, materialised."""
    for module in model.modules():
        if isinstance(module, Router | DispatchPart):
            module.reset_buffers()


@torch.no_grad()
def fill_parameter(module: nn.Module, logical_name: str, shard: Shard, seed: int) -> None:
    """The start of one parameter of `module`, or of the part of it that `shard` is."""
    deviations: Any = module.init_std
    std = None if deviations is None else deviations[logical_name.rpartition(".")[2]]
    if std is None:
        shard.local.fill_(1.0)
    elif isinstance(module, RoutedExperts):
        path, _, leaf = logical_name.rpartition(".")
        # From its expert's own key: moving an expert to another slot moves its start along.
        for expert, name, part in expert_parts(module, leaf, shard):
            key = tensor_key(seed, f"{path}.{name}", expert)
            _fill(part.local, part.global_shape, part.offset, key, float(std))
    else:
        _fill(shard.local, shard.global_shape, shard.offset, tensor_key(seed, logical_name), float(std))


def tensor_key(seed: int, logical_name: str, logical_expert: int | None = None) -> int:
    """64-bit key of one tensor, signed."""
    text = f"{seed}/{logical_name}/{'' if logical_expert is None else logical_expert}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def truncated_normal(key: int, index: Tensor, std: float) -> Tensor:
    """Normal of deviation `std` cut at ±3σ, float64: a pure function of `key` and each int64 `index`."""
    bits = _split_mix(index * GOLDEN + key)
    uniform = (_shift_right(bits, 11).double() + 0.5) * 2.0**-53  # in (0, 1), 53 bits
    return torch.erfinv((2.0 * uniform - 1.0) * math.erf(TRUNCATION / math.sqrt(2))) * (math.sqrt(2) * std)


def _fill(local: Tensor, global_shape: Sequence[int], offset: Sequence[int], key: int, std: float) -> None:
    if local.numel() == 0:
        return
    rows_at_a_time = max(1, CHUNK // max(1, local[0].numel()))
    for start in range(0, local.shape[0], rows_at_a_time):
        rows = local[start : start + rows_at_a_time]
        index = torch.zeros((1,) * local.dim(), dtype=torch.int64, device=local.device)
        for dim, size in enumerate(rows.shape):
            first = offset[dim] + (start if dim == 0 else 0)
            positions = torch.arange(first, first + size, device=local.device)
            index = index * global_shape[dim] + positions.view([-1 if d == dim else 1 for d in range(local.dim())])
        rows.copy_(truncated_normal(key, index, std))


def _split_mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift_right(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)
