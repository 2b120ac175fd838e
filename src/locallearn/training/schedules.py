"""Schedules of the learning rate by name: pure functions of a step's number, so that any step can be resumed from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from locallearn.arguments import checked_names
from locallearn.config import RunConfig
from locallearn.registry import Registry

Rates = Callable[[int], float]
"""The learning rate of a step, counted from 0."""


@checked_names
@dataclass(frozen=True)
class ScheduleInput:
    """What a schedule is built for.

    Attributes:
        config: of the run.
        steps_per_epoch: steps in an epoch.
        initial: rate that it starts from.
    """

    config: RunConfig
    steps_per_epoch: int
    initial: float

    @property
    def options(self) -> Any:
        """Settings of the schedule's own: an instance of the dataclass that it was registered with; None without."""
        schedule = self.config.schedule
        return schedules.options(schedule.name, schedule.options, "schedule.options")

    def passed(self, step: int) -> float:
        """Epochs before a step, whole ones where the rate changes once an epoch."""
        by_epoch = self.config.schedule.unit == "epoch"
        return step // self.steps_per_epoch if by_epoch else step / self.steps_per_epoch


schedules: Registry[Callable[[ScheduleInput], Rates]] = Registry(
    "schedule.name", "given: ScheduleInput", Callable, also="a class of torch.optim.lr_scheduler"
)  # type: ignore[arg-type]
"""Builders of schedules by name; what they build says the rate of a step before any warm-up."""


@schedules.register("constant")
def constant(given: ScheduleInput) -> Rates:
    """The initial rate throughout."""
    return lambda _: given.initial


@schedules.register("cosine")
def cosine(given: ScheduleInput) -> Rates:
    """To zero along half a cosine; with unit epoch, epoch e = 1..E has the rate at its end, as in Sec. 3.3.2."""
    shift = 1 if given.config.schedule.unit == "epoch" else 0
    epochs = given.config.train.epochs

    def rate(step: int) -> float:
        return given.initial * (0.5 * (1 + math.cos(math.pi * (given.passed(step) + shift) / epochs)))

    return rate


@schedules.register("milestones")
def milestones(given: ScheduleInput) -> Rates:
    """The initial rate times a factor from each milestone on."""
    schedule = given.config.schedule

    def rate(step: int) -> float:
        factor = 1.0
        for milestone, value in zip(schedule.milestones, schedule.factors, strict=True):
            if given.passed(step) >= milestone:
                factor = value
        return given.initial * factor

    return rate
