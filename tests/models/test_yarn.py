"""YaRN's frequencies for DeepSeek's numbers, worked out by hand; the oracle compares whole networks."""

import math

import pytest
import torch

from models.config import YarnConfig
from models.yarn import amplitude, score_factor, stretch

THETA, PAIRS = 10000.0, 32  # 64 rotary dimensions


def test_fast_pairs_stay_slow_ones_are_divided_and_those_between_blend() -> None:
    plain_R = THETA ** -(torch.arange(0, 2 * PAIRS, 2, dtype=torch.float64) / (2 * PAIRS))
    got_R = stretch(plain_R, THETA, YarnConfig(factor=40.0, original_length=4096))
    # Pair i turns 4096 x 10000^(-i/32) / 2 pi times in 4096 tokens: 32 times at i = 10.5, once at i = 22.5.
    turns_R = 4096 * plain_R / (2 * math.pi)
    assert [int((turns_R >= turns).sum()) for turns in (32, 1)] == [11, 23]
    torch.testing.assert_close(got_R[:11], plain_R[:11], rtol=1e-15, atol=0)
    torch.testing.assert_close(got_R[23:], plain_R[23:] / 40, rtol=1e-15, atol=0)
    for i in range(10, 24):
        divided = (i - 10) / (23 - 10)
        assert got_R[i].item() == pytest.approx(plain_R[i].item() * (1 - divided + divided / 40), rel=1e-14)


def test_growth() -> None:
    both = YarnConfig(factor=40.0, mscale=0.707, mscale_all_dim=0.707)
    assert amplitude(both) == 1.0
    assert score_factor(both) == pytest.approx((1 + 0.0707 * math.log(40)) ** 2)
    plain = YarnConfig(factor=40.0)
    assert amplitude(plain) == pytest.approx(1 + 0.1 * math.log(40))
    assert score_factor(plain) == 1.0
