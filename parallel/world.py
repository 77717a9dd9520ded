"""This process among the others: rank, device, process group."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from models.config import ConfigError
from parallel.own_store import own_store

TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for each other, at the start and in a collective."""


@dataclass(frozen=True)
class Launch:
    """What the launcher said, before any process group is made; one process alone if it said nothing."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    """Ranks on this machine."""
    launched: bool
    """True under torchrun, false for a plain `python -m train`."""

    @classmethod
    def from_environment(cls) -> "Launch":
        """Read torchrun's variables."""
        environment = os.environ
        return cls(
            rank=int(environment.get("RANK", 0)),
            world_size=int(environment.get("WORLD_SIZE", 1)),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            local_world_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
            launched="RANK" in environment,
        )

    def open_store(self, timeout: timedelta, refusal: str = "") -> dist.Store:
        """Where the ranks of this start find each other, in torchrun's store; or a store of this process's own. Called
        by all of them together; with its line by one that refuses the job.

        Raises:
            ConfigError: on every rank, if one refuses.
            DistError: if one does not come within `timeout`.
        """
        if not self.launched:
            return dist.HashStore()
        found: Iterator[tuple[dist.Store, int, int]] = dist.rendezvous(
            "env://", self.rank, self.world_size, timeout=timeout
        )
        store, _, _ = next(found)
        store.set_timeout(timeout)
        return own_store(store, self.rank, self.world_size, timeout, refusal)


def choose_device(wanted: str, launch: Launch) -> torch.device:
    """`wanted` is auto, cpu or cuda; auto is this rank's GPU where there is one.

    Raises:
        ConfigError: on all of a machine's ranks, if one of them has no GPU and was to have one.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if gpus == 0:
        raise ConfigError("train.device=cuda on a machine without a GPU: set train.device=cpu, or auto")
    if launch.local_world_size > gpus:
        raise ConfigError(
            f"{launch.local_world_size} ranks on a machine with {gpus} GPU{'s' * (gpus > 1)}: start {gpus} there, "
            "or set train.device=cpu"
        )
    return torch.device("cuda", launch.local_rank)


@dataclass(frozen=True)
class World:
    """A rank of a running process group."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, launch: Launch, device: torch.device, store: dist.Store, timeout: timedelta = TIMEOUT) -> "World":
        """Make the default process group: gloo for CPU tensors, NCCL beside it for GPU tensors.

        Ranks meet in `store`; a collective that takes longer than `timeout` is an error.
        """
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timeout,
        )
        return cls(launch.rank, launch.world_size, device)

    def leave(self) -> None:
        """End the process group."""
        dist.destroy_process_group()


def is_peer_failure(error: BaseException) -> bool:
    """Whether `error` says that another rank went away, rather than that something is wrong here."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
