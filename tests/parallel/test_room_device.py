"""strategy.rows=static on a device: refused where experts ask it for their numbers of rows all the same."""

from contextlib import nullcontext

import pytest
import torch

from models.config import ConfigError, ExpertBackend, ModelConfig
from parallel.check import check_room_device
from parallel.config import Dtype, StrategyConfig
from parallel.expert_parallel.build import RowRoom
from parallel.mesh import Degrees


@pytest.mark.parametrize(
    ("device", "compute", "backend", "rows", "refused"),
    [
        ("cuda", Dtype.float32, ExpertBackend.auto, RowRoom.static, True),
        ("cuda", Dtype.bfloat16, ExpertBackend.auto, RowRoom.static, False),
        ("cuda", Dtype.float32, ExpertBackend.auto, RowRoom.exact, False),
        ("cuda", Dtype.float32, ExpertBackend.grouped_mm, RowRoom.static, True),
        ("cpu", Dtype.float64, ExpertBackend.auto, RowRoom.static, False),
    ],
)
def test_a_loop_over_experts_waits(
    device: str, compute: Dtype, backend: ExpertBackend, rows: RowRoom, refused: bool
) -> None:
    said = r"^strategy\.rows=static: with precision\.compute=float32 experts are a loop on a GPU"
    with pytest.raises(ConfigError, match=said) if refused else nullcontext():
        check(rows, compute, backend, device)


def check(rows: RowRoom, compute: Dtype, backend: ExpertBackend, device: str) -> None:
    strategy = StrategyConfig(rows=rows)
    degrees = Degrees.resolve(strategy, 1)
    check_room_device(ModelConfig(expert_backend=backend), strategy, compute, degrees, torch.device(device))


@pytest.mark.parametrize("backend", [ExpertBackend.auto, ExpertBackend.grouped_mm, ExpertBackend.fused])
def test_so_does_torch_on_another_gpu(backend: ExpertBackend, older_gpu: None) -> None:
    check(RowRoom.static, Dtype.bfloat16, backend, "cuda")  # which it is is not known
    said = (
        r"^strategy\.rows=static: experts are a loop on An Older GPU \(compute capability 8\.0\), and the host waits "
        r"for how many rows each has; use strategy\.rows=exact$"
    )
    with pytest.raises(ConfigError, match=said):
        check(RowRoom.static, Dtype.bfloat16, backend, "cuda:0")
