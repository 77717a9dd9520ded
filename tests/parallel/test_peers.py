"""strategy.dispatcher=symmetric_memory: refused where ranks of ep cannot read each other's memory."""

from dataclasses import replace

import pytest
import torch

from models.config import ConfigError
from parallel.check import check_peers
from parallel.config import Reduction, StrategyConfig
from parallel.expert_parallel.build import DispatcherName
from parallel.mesh import Degrees

TAKEN = StrategyConfig("ep", Reduction.all_reduce, dp_replicate=-1, ep=2, dispatcher=DispatcherName.symmetric_memory)


def check(strategy: StrategyConfig, device: str) -> None:
    check_peers(strategy, Degrees.resolve(strategy, 4), torch.device(device))


def test_a_cpu_shares_nothing() -> None:
    said = (
        r"^strategy\.dispatcher=symmetric_memory: GPUs read each other's memory, a cpu does not; set it to all_gather"
    )
    with pytest.raises(ConfigError, match=said):
        check(TAKEN, "cpu")
    check(replace(TAKEN, dispatcher=DispatcherName.all_gather), "cpu")


def test_only_peers_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def can(device: torch.device, peer: int) -> bool:
        asked.append((device.index, peer))
        return peer != 2

    monkeypatch.setattr(torch.cuda, "can_device_access_peer", can)
    for index in range(3):
        check(TAKEN, f"cuda:{index}")
    assert asked == [(0, 1), (1, 0), (2, 3)]
    with pytest.raises(ConfigError, match="GPU 3 cannot address the memory of GPU 2; set it to all_gather"):
        check(TAKEN, "cuda:3")
