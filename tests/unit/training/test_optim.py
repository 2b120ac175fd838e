import itertools
import math

import pytest
import torch

from locallearn.config import OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from locallearn.experiments.recipes import recipe
from locallearn.training.optim import build_optimizer, learning_rate


def rates(config, steps_per_epoch=2):
    return [learning_rate(config, s, steps_per_epoch) for s in range(steps_per_epoch * config.train.epochs)]


def test_thesis_schedule_of_sec_3_3_2_epoch_by_epoch():
    config = recipe("resnet32-gn-dgl")
    for e, rate in enumerate(rates(config, 1), start=1):
        expected = 0.4 * (1 + math.cos(math.pi * e / 160))
        if e <= 10:
            expected = expected * (e - 1) / 10 + 0.01 * (11 - e) / 10
        assert rate == pytest.approx(expected, rel=1e-12), e


def test_thesis_schedule_of_sec_3_3_1():
    found = rates(recipe("vgg6a-dgl"), 1)
    assert found[:50] == [1e-3] * 50
    assert found[50:100] == pytest.approx([5e-4] * 50)
    assert found[100:] == pytest.approx([1e-4] * 50)


def test_epoch_unit_is_constant_within_an_epoch_and_step_unit_is_not():
    train = TrainConfig(epochs=4)
    epoch = rates(RunConfig(train=train))
    step = rates(RunConfig(train=train, schedule=ScheduleConfig(unit="step")))
    assert epoch[::2] == epoch[1::2]
    assert all(a > b for a, b in itertools.pairwise(step))
    assert step[0] == pytest.approx(0.1)


def test_warm_up_by_steps_starts_at_the_given_rate():
    schedule = ScheduleConfig(name="constant", warmup_epochs=2, warmup_rate=0.02, unit="step")
    found = rates(RunConfig(schedule=schedule, train=TrainConfig(epochs=3)))
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


def test_a_training_shorter_than_the_warm_up_is_all_warm_up():
    schedule = ScheduleConfig(name="constant", warmup_epochs=10, warmup_rate=0.02, unit="step")
    found = rates(RunConfig(schedule=schedule, train=TrainConfig(epochs=2)))
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.08])


def test_optimizers_follow_their_settings():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    sgd = build_optimizer(
        OptimizerConfig(learning_rate=0.5, momentum=0.0, nesterov=False, weight_decay=0.1), [parameter]
    )
    parameter.grad = torch.tensor([2.0])
    sgd.step()
    assert parameter.item() == pytest.approx(1.0 - 0.5 * (2.0 + 0.1))
    adam = build_optimizer(OptimizerConfig(name="adam", learning_rate=0.5, weight_decay=0.0), [parameter])
    before = parameter.item()
    adam.step()
    assert parameter.item() == pytest.approx(before - 0.5, rel=1e-5)
