"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from locallearn.config import OptimizerConfig, RunConfig, ScheduleConfig


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of one module. Its updates are elementwise, so it is each node's own."""
    if config.name == "adam":
        return torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=True)
    return torch.optim.SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        foreach=True,
    )


def learning_rate(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    r"""Learning rate of one step, counted from 0.

    With ``schedule.unit = "epoch"`` the rate of epoch e = 1..E is, for the cosine of Sec. 3.3.2,
    :math:`r(e) = \frac{r_0}{2} (1 + \cos(\pi e / E))`, and in the first W epochs
    :math:`r(e) (e - 1) / W + r_w (W + 1 - e) / W`. With ``"step"`` the same curve is followed at every step.
    """
    schedule, initial = config.schedule, config.optimizer.learning_rate
    passed = step // steps_per_epoch if schedule.unit == "epoch" else step / steps_per_epoch
    e = passed + 1 if schedule.unit == "epoch" else passed
    rate = initial * _decay(schedule, e, passed, config.train.epochs)
    warmup = min(schedule.warmup_epochs, config.train.epochs)
    if passed < warmup:
        share = passed / warmup
        rate = rate * share + schedule.warmup_rate * (1 - share)
    return rate


def _decay(schedule: ScheduleConfig, e: float, passed: float, epochs: int) -> float:
    if schedule.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * e / epochs))
    factor = 1.0
    if schedule.name == "milestones":
        for milestone, value in zip(schedule.milestones, schedule.factors, strict=True):
            if passed >= milestone:
                factor = value
    return factor
