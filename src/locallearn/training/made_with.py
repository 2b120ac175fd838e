"""What a stage's optimizer and schedule were made with, so that a run is continued with the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from locallearn.core.local_step import LocalStep
from locallearn.training.work import Work

_HOW = frozenset(("params", "foreach", "fused", "capturable", "differentiable"))
"""Settings of parameter groups that say how an update is computed, and not which one."""


def made_with(step: LocalStep, schedule: Any, work: Work) -> dict[str, Any]:
    """The settings of a stage that has not trained yet, as plain values; what has no plain value is left out.

    Args:
        step: of the stage.
        schedule: a scheduler of torch on its optimizer, or None.
        work: how it is trained.
    """
    optimizer = step.optimizer
    groups = [{k: v for k, v in group.items() if k not in _HOW} for group in optimizer.param_groups]
    names = {"optimizer": type(optimizer).__name__, "schedule": None if schedule is None else type(schedule).__name__}
    counted = {"accumulate": work.accumulate, "average": work.average}
    if schedule is not None:
        counted |= {"schedule_unit": "epoch" if work.every_epoch else "step"}
    own = {} if schedule is None else schedule.state_dict()
    return _plain({**names, **counted, "optimizer's groups": groups, "schedule's": own})


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Where two plain values differ first: the name of the place and both values; None where they do not."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        pairs = [(key, before.get(key), now.get(key)) for key in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [("", *pair) for pair in zip(before, now, strict=True)]
    else:
        return None if before == now else (name, before, now)
    found = (first_difference(a, b, f"{name} {key}".strip()) for key, a, b in pairs)
    return next((each for each in found if each is not None), None)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (bool, int, float, str)) else None
