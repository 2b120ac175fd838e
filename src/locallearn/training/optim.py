"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

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


class RunSchedule(LRScheduler):
    """A run's schedule as one of torch's: step it after every training step.

    The rate of step ``last_epoch`` (torch's name for the number of steps so far) is :func:`learning_rate`, for each
    of the optimizer's groups from its own initial rate. The state is that number, and what torch keeps beside it.

    Args:
        optimizer: its groups' rates are set.
        config: of the run.
        steps_per_epoch: steps in an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: RunConfig, steps_per_epoch: int) -> None:
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of the present step, for each of the optimizer's groups."""
        return [
            learning_rate(self._config, self.last_epoch, self._steps_per_epoch, float(initial))
            for initial in self.base_lrs
        ]

    def state_dict(self) -> dict[str, Any]:
        """What torch keeps, without the configuration."""
        return {key: value for key, value in super().state_dict().items() if not key.startswith("_config")}


def build_schedule(config: RunConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> RunSchedule:
    """The schedule of one module's optimizer; call its ``step()`` after every training step, whatever its unit is."""
    return RunSchedule(optimizer, config, steps_per_epoch)


def learning_rate(config: RunConfig, step: int, steps_per_epoch: int, initial: float | None = None) -> float:
    r"""Learning rate of one step, counted from 0.

    With ``schedule.unit = "epoch"`` the rate of epoch e = 1..E is, for the cosine of Sec. 3.3.2,
    :math:`r(e) = \frac{r_0}{2} (1 + \cos(\pi e / E))`, and in the first W epochs
    :math:`r(e) (e - 1) / W + r_w (W + 1 - e) / W`. With ``"step"`` the same curve is followed at every step.

    Args:
        config: of the run; its schedule is followed.
        step: number of the step, from 0.
        steps_per_epoch: steps in an epoch.
        initial: :math:`r_0`; by default the optimizer's ``learning_rate``.
    """
    schedule = config.schedule
    initial = config.optimizer.learning_rate if initial is None else initial
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
