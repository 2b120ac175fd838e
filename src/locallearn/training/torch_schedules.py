"""Torch's own schedules as functions of the step."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from locallearn.errors import ConfigError
from locallearn.registry import unknown
from locallearn.training.schedules import Rates, ScheduleInput


def torch_rates(given: ScheduleInput) -> Rates:
    """The rates that a class of ``torch.optim.lr_scheduler`` sets, stepped once an epoch or once a step.

    They are read from an optimizer of nothing, as far as they are asked for, so any step can be resumed from.
    ``total_steps`` and ``T_max`` are the run's own where they are left out. Momentum stays as it is.

    Raises:
        ConfigError: torch has no such class, it follows more than the number of the step, or it refuses its
            arguments.
    """
    schedule = given.config.schedule
    every = given.steps_per_epoch if schedule.unit == "epoch" else 1
    scheduler = _scheduler(given, given.config.train.epochs * given.steps_per_epoch // every)
    found = [float(scheduler.optimizer.param_groups[0]["lr"])]

    def rate(step: int) -> float:
        while len(found) <= step // every:
            scheduler.optimizer.step()
            try:
                with warnings.catch_warnings(action="ignore"):
                    scheduler.step()
            except ValueError as error:  # OneCycleLR has an end
                raise ConfigError("schedule.options", schedule.options, f"other ones ({error})") from None
            found.append(float(scheduler.optimizer.param_groups[0]["lr"]))
        return found[step // every]

    return rate


def _scheduler(given: ScheduleInput, total: int) -> LRScheduler:
    schedule = given.config.schedule
    kind = _class(schedule.name)
    known = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {name: total for name in ("total_steps", "T_max") if name in known}
    if {"epochs", "steps_per_epoch"} <= set(schedule.options if isinstance(schedule.options, dict) else ()):
        arguments.pop("total_steps", None)
    arguments |= {"cycle_momentum": False} if "cycle_momentum" in known else {}
    arguments |= schedule.options if isinstance(schedule.options, dict) else {}
    if arguments.get("cycle_momentum"):
        raise ConfigError("schedule.options.cycle_momentum", True, "false: the momentum of a run stays as it is")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=given.initial)
    try:
        return kind(optimizer, **arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError("schedule.options", arguments, f"what {schedule.name} takes ({error})") from None


def _class(name: str) -> type[LRScheduler]:
    """The class of that name that needs the number of the step alone.

    Raises:
        ConfigError: torch has none.
    """
    kinds = {
        key: kind
        for key, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, LRScheduler) and kind is not LRScheduler and key[0] != "_"
    }
    kinds.pop("ReduceLROnPlateau", None)  # follows a figure of the validation
    if name in kinds:
        return kinds[name]
    raise unknown("schedule.name", name, list(kinds))
