import dataclasses
import itertools
import json
import math

import pytest
import torch

from locallearn.config import OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from locallearn.recipes.named import recipe
from locallearn.training.optim import build_optimizer, build_schedule, learning_rate


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


SCHEDULES = [
    ScheduleConfig(),
    ScheduleConfig(name="constant", warmup_epochs=2, unit="step"),
    ScheduleConfig(warmup_epochs=1, unit="step"),
    ScheduleConfig(name="milestones", milestones=(1, 3), factors=(0.5, 0.3)),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_built_schedule_sets_exactly_the_rates_of_the_pure_function(schedule):
    config = RunConfig(schedule=schedule, train=TrainConfig(epochs=5))
    assert go_on(schedule_of(config, 7), 35) == rates(config, 7)  # bit for bit
    other = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=0.2))
    assert go_on(schedule_of(other, 7), 35) != rates(config, 7)


def schedule_of(config, steps_per_epoch):
    optimizer = build_optimizer(config.optimizer, [torch.nn.Parameter(torch.zeros(1))])
    return build_schedule(config, optimizer, steps_per_epoch)


def go_on(schedule, steps):
    """The rates of so many steps."""
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_a_schedule_continues_from_its_saved_state():
    config = RunConfig(schedule=SCHEDULES[2], train=TrainConfig(epochs=5))
    first = schedule_of(config, 7)
    assert go_on(first, 10) == rates(config, 7)[:10]
    later = schedule_of(config, 7)
    later.optimizer.load_state_dict(first.optimizer.state_dict())
    later.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert go_on(later, 25) == rates(config, 7)[10:]


def test_every_group_of_an_optimizer_follows_the_schedule_from_its_own_rate():
    config = RunConfig(schedule=ScheduleConfig(unit="step"), train=TrainConfig(epochs=2))
    weights = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.1)]
    optimizer = torch.optim.SGD(weights)
    schedule = build_schedule(config, optimizer, 2)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [learning_rate(config, 1, 2, 1.0), learning_rate(config, 1, 2, 0.1)]
    assert schedule.get_last_lr()[0] == pytest.approx(10 * schedule.get_last_lr()[1])


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
