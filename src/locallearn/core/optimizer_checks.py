"""Optimizers of the user's own: each is over the parameters of its stage, and of no other."""

from __future__ import annotations

from collections.abc import Iterable

from locallearn.core.local_step import LocalStep
from locallearn.core.module import Stage
from locallearn.errors import UsageError


def check_optimizers(stages: Iterable[Stage], steps: Iterable[LocalStep]) -> None:
    """Refuse optimizers that would train another stage as well, or nothing of their own.

    Args:
        stages: all of the network.
        steps: local steps of some of them, with the user's optimizers.

    Raises:
        UsageError: an optimizer is such a one.
    """
    owners = {id(p): stage.name for stage in stages for p in stage.own_parameters().values()}
    for step in steps:
        own, kind = step.module.name, type(step.optimizer).__name__
        held = {owners.get(id(p), "") for group in step.optimizer.param_groups for p in group["params"]}
        other = min(held - {own, ""}, default="")
        expected = "expected one over the parameters that its function is given"
        if other:
            raise UsageError(f"optimizer: {kind} of stage {own} has parameters of stage {other}, too; {expected}")
        if own not in held and any(p.requires_grad for p in step.module.own_parameters().values()):
            raise UsageError(
                f"optimizer: {kind} of stage {own} has none of its parameters (the network trains a copy of the "
                f"model that was split); {expected}"
            )
