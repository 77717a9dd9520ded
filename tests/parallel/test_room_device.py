"""strategy.rows=static on a device: refused where experts ask it for their numbers of rows all the same."""

from contextlib import nullcontext

import pytest
import torch

from models.config import ConfigError, ExpertBackend, ModelConfig
from parallel.check import check_room_device
from parallel.config import Dtype, StrategyConfig
from parallel.expert_parallel.build import RowRoom


@pytest.mark.parametrize(
    ("device", "compute", "backend", "rows", "refused"),
    [
        ("cuda", Dtype.float32, ExpertBackend.auto, RowRoom.static, True),
        ("cuda", Dtype.bfloat16, ExpertBackend.auto, RowRoom.static, False),
        ("cuda", Dtype.float32, ExpertBackend.auto, RowRoom.exact, False),
        ("cpu", Dtype.float64, ExpertBackend.auto, RowRoom.static, False),
    ],
)
def test_a_loop_over_experts_waits(
    device: str, compute: Dtype, backend: ExpertBackend, rows: RowRoom, refused: bool
) -> None:
    said = r"^strategy\.rows=static: with precision\.compute=float32 experts are a loop on a GPU"
    with pytest.raises(ConfigError, match=said) if refused else nullcontext():
        check_room_device(ModelConfig(expert_backend=backend), StrategyConfig(rows=rows), compute, torch.device(device))
