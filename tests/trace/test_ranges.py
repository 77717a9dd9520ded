"""NVTX ranges: what Nsight would be told."""

import pytest
import torch

from models.config import ConfigError
from parallel.clock.phase_clock import Phase, PhaseClock
from parallel.clock.time_source import HostTime
from parallel.comm_kind import CommKind
from train.trace.ranges import check_nvtx, nvtx_range


def test_phases_waits_and_starts_are_pushed_and_popped(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", told.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: told.append("pop"))
    clock = PhaseClock(HostTime())
    clock.ranges = nvtx_range
    clock.enter(Phase.compute_bwd)
    with clock.issuing(CommKind.ep, "all_to_all"):
        pass
    with clock.waiting(CommKind.ep, "all_to_all", None):
        pass
    clock.enter(Phase.log)
    clock.ranges = None
    clock.enter(Phase.eval)
    inside = ["comm/ep/all_to_all", "pop", "wait/ep/all_to_all", "pop"]
    assert told == ["phase/compute_bwd", *inside, "pop", "phase/log", "pop"]


def test_nvtx_without_a_gpu_is_refused() -> None:
    check_nvtx(False, torch.device("cpu"))
    check_nvtx(True, torch.device("cuda", 0))
    with pytest.raises(ConfigError, match=r"measure.nvtx=true: NVTX ranges are of GPUs.*set it to false"):
        check_nvtx(True, torch.device("cpu"))
