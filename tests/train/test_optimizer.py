"""The learning rate over a job, and who decays."""

import pytest
import torch

from train.config import OptimConfig, Schedule
from train.optimizer import build_optimizer, learning_rate


def test_warm_up_is_linear_and_then_each_schedule_goes_its_way() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=10, min_lr_ratio=0.1, decay_fraction=0.2)
    assert [learning_rate(optim, step, 100) for step in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(optim, 55, 100) == pytest.approx(0.55)  # half way down the cosine
    assert learning_rate(optim, 100, 100) == pytest.approx(0.1)

    optim.schedule = Schedule.wsd
    assert learning_rate(optim, 80, 100) == pytest.approx(1.0)
    assert learning_rate(optim, 90, 100) == pytest.approx(0.55)
    assert learning_rate(optim, 100, 100) == pytest.approx(0.1)

    optim.schedule = Schedule.constant
    assert learning_rate(optim, 100, 100) == 1.0


@pytest.mark.parametrize("schedule", list(Schedule))
def test_every_step_has_a_rate(schedule: Schedule) -> None:
    for warmup in (0, 3, 200):
        optim = OptimConfig(lr=1.0, warmup_steps=warmup, schedule=schedule)
        rates = [learning_rate(optim, step, 20) for step in range(1, 21)]
        assert all(0 < rate <= 1.0 for rate in rates)


def test_matrices_decay_and_vectors_do_not_and_state_exists_before_the_first_step() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = build_optimizer(list(model.parameters()), OptimConfig(lr=0.1, weight_decay=0.5, warmup_steps=0))
    assert len(optimizer.state) == 4
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        expected = old * (1 - 0.1 * 0.5) if parameter.dim() == 2 else old
        torch.testing.assert_close(parameter.detach(), expected)
