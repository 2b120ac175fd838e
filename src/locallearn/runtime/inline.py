"""The inline runtime: one process calls the modules in order, and each frees its graph before the next starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from locallearn.core.module import LocalStep
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss


class Runtime:
    """Decides where and when the local steps of one batch are called. Entered while it trains."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to close."""

    def open(self, start: int, end: int) -> None:
        """Get ready for the steps from ``start`` to ``end`` of the run."""

    def stops(self, requested: bool) -> bool:
        """Whether to stop now, where this process was asked to; several must agree on the step."""
        return requested

    def settle(self) -> None:
        """Wait until what was sent to other processes has arrived; before anything that all of them do together.

        Raises:
            PeerLostError: one of them is gone, which a thread that sends may have noticed while nobody asked it.
        """

    def step(self, batch: Batch, index: int, stop: bool = False) -> list[LocalLoss]:
        """Train on one batch.

        Args:
            batch: the batch.
            index: number of the step in the run, or in its phase.
            stop: whether the process was asked to stop; several must agree on the step.

        Returns:
            The losses of the modules that were trained here, in order.
        """
        raise NotImplementedError


class InlineRuntime(Runtime):
    """Train all modules on one batch after the other.

    Args:
        steps: the local steps of the modules, in order.
    """

    def __init__(self, steps: Sequence[LocalStep]) -> None:
        self.steps = steps

    def step(self, batch: Batch, index: int, stop: bool = False) -> list[LocalLoss]:
        """Train every module on one batch (Algorithms 1 and 2)."""
        features, losses = batch.images, []
        for step in self.steps:
            features, loss = step(features, batch, index)
            losses.append(loss)
        return losses
