"""Are the copies still equal? Silent corruption of memory or arithmetic shows where ranks hold the same tensor.

Each rank hashes the bits of all that it holds, on its device; what several ranks hold (a part of a tensor) must have
one hash. Rank 0 gathers and compares them, over the host. Hashes add up modulo 2⁶⁴, each element's bits times an odd
number that its place gives: in any order the same sum, and one flipped bit is always seen.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.initialise import Shard
from parallel.comm import Communicator
from parallel.engine import Engine
from train.failure import FAILED, JobEnds

CHUNK = 1 << 22
"""Elements hashed at a time: 32 MiB a temporary."""
PLACE, CHUNK_PLACE = 0x9E3779B97F4A7C15 - 2**64, 0xC2B2AE3D27D4EB4F - 2**64
"""Odd multipliers of an element's place in its chunk, and of a chunk's."""
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(engine: Engine, comm: Communicator, step: int) -> None:
    """Compare weights and moments of all ranks, bit by bit, after `step`; all ranks call it together.

    Raises:
        JobEnds: on every rank, saying what differs and where.
    """
    held = engine.weights() | engine.moments()
    keys = np.array([box_key(name, shard) for name, shard in held.items()], dtype=np.int64)
    device = next(iter(held.values())).local.device
    places = place_multipliers(device)
    hashes = torch.stack([bit_hash(shard.local, places) for shard in held.values()]).cpu().numpy()
    differing = _differing(comm.gather_object(np.stack((keys, hashes))))
    if told := comm.broadcast_object(list(differing)):
        names = _names(told, dict(zip(keys.tolist(), held, strict=True)), comm)
        raise JobEnds("failed", FAILED, comm.broadcast_object(_verdict(differing, names, step) if differing else ""))


def box_key(name: str, shard: Shard) -> int:
    """A number for one part of one tensor, whoever holds it: 64 bits, signed."""
    box = f"{name} {shard.offset} {tuple(shard.local.shape)}"
    return int.from_bytes(hashlib.blake2b(box.encode(), digest_size=8).digest(), signed=True)


def place_multipliers(device: torch.device) -> Tensor:
    """Of each place in a chunk, int64."""
    return torch.arange(CHUNK, dtype=torch.int64, device=device).mul_(2).add_(1).mul_(PLACE)


@torch.no_grad()
def bit_hash(tensor: Tensor, places: Tensor) -> Tensor:
    """64 bits of the bits of `tensor`, an int64 scalar on its device, by `places` on the same. On an H100 200 GB/s."""
    bits = tensor.detach().contiguous().view(-1).view(BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk in bits.split(CHUNK):
        total = total * CHUNK_PLACE + (chunk * places[: len(chunk)]).sum()  # int64: what is multiplied is widened
    return total


def _differing(gathered: Sequence[np.ndarray]) -> dict[int, dict[int, int]]:
    """By key, the hashes by rank of what has more than one. `gathered`: keys and hashes of all ranks, or nothing."""
    by_key: dict[int, dict[int, int]] = defaultdict(dict)
    for rank, (rank_keys, rank_hashes) in enumerate(gathered):
        for key, value in zip(rank_keys.tolist(), rank_hashes.tolist(), strict=True):
            by_key[key][rank] = value
    return {key: by_rank for key, by_rank in by_key.items() if len(set(by_rank.values())) > 1}


def _names(differing: Sequence[int], own: Mapping[int, str], comm: Communicator) -> dict[int, str]:
    """Of what differs, on rank 0; the ranks that hold it know."""
    names: dict[int, str] = {}
    for told in comm.gather_object({key: own[key] for key in differing if key in own}):
        names |= told
    return names


def _verdict(differing: Mapping[int, Mapping[int, int]], names: Mapping[int, str], step: int) -> str:
    """Of what differs: the first by name, and how much there is besides; the ranks that disagree with most holders."""
    first = min(differing, key=lambda key: names[key])
    holders = differing[first]
    [(commonest, count), *others] = Counter(holders.values()).most_common()
    if count > sum(n for _, n in others):
        odd = [rank for rank, value in holders.items() if value != commonest]
        who = f"on rank {', '.join(map(str, odd))}, unlike on {count} other ranks"
    else:
        who = f"on ranks {', '.join(map(str, holders))}, and there is no telling which is right"
    besides = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return (
        f"after step {step} {names[first]}{besides} differs {who}: memory or arithmetic went wrong there; take that "
        "machine out, and start again from the checkpoint before"
    )
