"""The published models' shapes, on the meta device: they take no memory."""

import pytest
import torch

from conf.compose import compose
from models.flops import count_parameters
from models.transformer import Transformer


@pytest.mark.parametrize(
    ("name", "total_billions", "active_billions"),
    # DeepSeek-V2-Lite's report says 15.7 B and 2.4 B active without embedding and head, V3's 671 B and 37 B.
    [
        ("moe_5b", 4.89, 0.81),
        ("moe_5b_gqa", 4.86, 0.78),
        ("moe_768", 5.13, 0.53),
        ("dsv2_lite", 15.71, 2.45),
        ("dsv3", 671.0, 36.6),
    ],
)
def test_parameters_are_as_published(name: str, total_billions: float, active_billions: float) -> None:
    model = compose([f"model={name}"]).config.model
    model.check()
    count = count_parameters(model)
    assert count.total / 1e9 == pytest.approx(total_billions, abs=0.05)
    assert count.active / 1e9 == pytest.approx(active_billions, abs=0.1)
    with torch.device("meta"):
        network = Transformer(model, torch.bfloat16)
    assert sum(p.numel() for p in network.parameters()) == count.total
