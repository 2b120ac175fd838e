"""The inline runtime: one process calls the modules in order, and each frees its graph before the next starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from locallearn.core.module import LocalStep
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss


class Runtime(Protocol):
    """Decides where and when the local steps of one batch are called."""

    def step(self, batch: Batch, index: int) -> list[LocalLoss]:
        """Train on one batch, step ``index`` of the run, and return the losses of the modules that were trained."""
        ...


class InlineRuntime:
    """Train all modules on one batch after the other.

    Args:
        steps: the local steps of the modules, in order.
    """

    def __init__(self, steps: Sequence[LocalStep]) -> None:
        self.steps = steps

    def step(self, batch: Batch, index: int) -> list[LocalLoss]:
        """Train every module on one batch (Algorithms 1 and 2).

        Args:
            batch: the batch.
            index: number of the step in the run.

        Returns:
            Each module's losses, in order.
        """
        features, losses = batch.images, []
        for step in self.steps:
            features, loss = step(features, batch, index)
            losses.append(loss)
        return losses
