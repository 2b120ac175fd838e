"""The inline runtime: one process calls the modules in order, and each frees its graph before the next starts."""

from __future__ import annotations

from collections.abc import Sequence

from locallearn.core.module import LocalStep
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss


class InlineRuntime:
    """Train all modules on one batch after the other.

    Args:
        steps: the local steps of the modules, in order.
    """

    def __init__(self, steps: Sequence[LocalStep]) -> None:
        self.steps = steps

    def __enter__(self) -> InlineRuntime:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to close."""

    def open(self, start: int, end: int) -> None:
        """Nothing to connect."""

    def step(self, batch: Batch, index: int, stop: bool = False) -> list[LocalLoss]:
        """Train every module on one batch (Algorithms 1 and 2).

        Args:
            batch: the batch.
            index: number of the step in the run.
            stop: whether the process was asked to stop, which needs nobody's agreement here.

        Returns:
            Each module's losses, in order.
        """
        features, losses = batch.images, []
        for step in self.steps:
            features, loss = step(features, batch, index)
            losses.append(loss)
        return losses
