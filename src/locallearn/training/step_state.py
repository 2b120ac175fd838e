"""What a local step has beside weights and the tensors of its optimizer, and that as tensors of a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from locallearn.core.local_step import LocalStep
from locallearn.core.own_errors import told_of
from locallearn.core.weight_average import WeightAverage
from locallearn.errors import ConfigError, UsageError
from locallearn.training.made_with import first_difference
from locallearn.training.work import Work


def equip(step: LocalStep, work: Work, precision: str, device: torch.device) -> Any:
    """Give a local step what the work asks for beside its optimizer, and return the schedule on that, or None.

    Raises:
        ConfigError: the schedule is none of torch's, or follows a measure where none is asked for.
        UsageError: it follows a measure, and there is nothing to evaluate on.
    """
    schedule = None if work.schedule is None else work.schedule(step.optimizer)
    if schedule is not None and not hasattr(schedule, "step"):
        raise ConfigError("schedule", type(schedule).__name__, "a function that gives a scheduler of torch, or None")
    if isinstance(schedule, ReduceLROnPlateau):
        if not work.every_epoch:
            expected = "'epoch' with ReduceLROnPlateau, which follows the validation loss"
            raise ConfigError("schedule_unit", "step", expected)
        if work.evaluate is None:
            raise UsageError("schedule: ReduceLROnPlateau needs validation batches: fit(..., validation=...)")
    if not work.every_epoch:
        step.schedule = schedule
    if precision == "fp16":
        trained = next(iter(step.module.own_parameters().values()), None)
        step.scaler = torch.amp.GradScaler((device if trained is None else trained.device).type)
    if work.average:
        step.average = WeightAverage(step.module, work.average)
    return schedule


def end_epoch(schedules: Iterable[Any], loss: float | None) -> None:
    """Step schedules that count epochs; one that follows a measure is stepped where there is one.

    Args:
        schedules: of all stages.
        loss: the last stage's validation loss, after an epoch that was evaluated.
    """
    for schedule in schedules:
        with told_of("schedule", f"{type(schedule).__name__} makes no step"):
            if not isinstance(schedule, ReduceLROnPlateau):
                schedule.step()
            elif loss is not None:
                schedule.step(loss)


def step_state(step: LocalStep, schedule: Any, made: dict[str, Any]) -> dict[str, Tensor]:
    """Settings of the optimizer's groups, the schedule, the scaler and the moving average of a stage.

    Args:
        step: of the stage.
        schedule: a scheduler of torch on its optimizer, or None.
        made: what both were made with.
    """
    name = step.module.name
    groups = [{k: v for k, v in group.items() if k != "params"} for group in step.optimizer.param_groups]
    rest = {
        "made": made,
        "groups": groups,
        "numbers": [
            {k: v for k, v in step.optimizer.state.get(p, {}).items() if not isinstance(v, Tensor)}
            for p in step.module.own_parameters().values()
        ],
        "schedule": None if schedule is None else schedule.state_dict(),
        "scaler": None if step.scaler is None else step.scaler.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(rest, buffer)
    found = {f"settings/{name}": torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)}
    if step.average is not None:
        found |= {f"average/{name}/{key}": value for key, value in step.average.values.items()}
    return found


def check_step_state(stage: str, made: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse to go on with other settings than those that the run began with, which would be put back or mixed.

    Args:
        stage: its name.
        made: what its optimizer and schedule are made with now.
        tensors: what ``step_state`` gave.
        folder: of the run.

    Raises:
        UsageError: a setting is another one.
    """
    found = first_difference(_settings(stage, tensors)["made"], made)
    if found is not None:
        place, before, now = found
        raise UsageError(
            f"run: {folder} began with {place} {before!r}, and this is {now!r} (stage {stage}); expected the same "
            "settings, or another folder (ll.load_run gives a new training the weights of this one)"
        )


def _settings(stage: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return torch.load(io.BytesIO(tensors[f"settings/{stage}"].numpy().tobytes()), weights_only=True)


def load_step_state(step: LocalStep, schedule: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``step_state`` gave."""
    name = step.module.name
    rest = _settings(name, tensors)
    for group, values in zip(step.optimizer.param_groups, rest["groups"], strict=True):
        group.update(values)
    for parameter, numbers in zip(step.module.own_parameters().values(), rest["numbers"], strict=True):
        if numbers:
            step.optimizer.state[parameter].update(numbers)
    if schedule is not None:
        schedule.load_state_dict(rest["schedule"])
    if step.scaler is not None:
        step.scaler.load_state_dict(rest["scaler"])
    if step.average is not None:
        for key, value in step.average.values.items():
            value.copy_(tensors[f"average/{name}/{key}"])
