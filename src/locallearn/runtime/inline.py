"""The inline runtime: one process calls the modules in order, and each frees its graph before the next starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from locallearn.core.local_step import LocalStep, walk
from locallearn.costs.memory import ActivationMeter
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss

Walk = Callable[[Sequence[LocalStep], Batch, int | None, float | None], list[LocalLoss]]
"""Trains stages one after the other on one batch, as ``locallearn.core.local_step.walk`` does."""


@dataclass(frozen=True)
class Trained:
    """A batch that has been trained on.

    Attributes:
        labels: its labels.
        losses: of the modules that were trained here, in order.
        examples: B, with both views of every image where there are two.
    """

    labels: Any
    losses: list[LocalLoss]
    examples: int


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

    def settle(self) -> list[Trained]:
        """Wait until nothing is on its way; before weights are looked at, or anything that all processes do together.

        Returns:
            The batches that were still being trained on.

        Raises:
            PeerLostError: another process is gone, which a thread that sends may have noticed while nobody asked it.
        """
        return []

    def step(self, batch: Batch, index: int, rate: float | None = None, stop: bool = False) -> list[Trained]:
        """Train on one batch, or start to.

        Args:
            batch: the batch.
            index: number of the step in the run, or in its phase.
            rate: learning rate of the step; None leaves the optimizers as they are.
            stop: whether the process was asked to stop; several must agree on the step.

        Returns:
            The batches that have been trained on since the last call, in order: this one, unless it is on its way.
        """
        raise NotImplementedError

    def weighed_step(
        self, batch: Batch, index: int, rate: float | None, stop: bool, parameters: Sequence[Tensor]
    ) -> tuple[list[Trained], int]:
        """As ``step``, and the peak of what autograd kept for the backward pass [bytes].

        Args:
            batch: the batch.
            index: number of the step.
            rate: learning rate of the step.
            stop: whether the process was asked to stop.
            parameters: tensors that are there anyway and do not count.
        """
        with ActivationMeter(parameters) as meter:
            done = self.step(batch, index, rate, stop)
        return done, meter.peak_bytes


class InlineRuntime(Runtime):
    """Train all modules on one batch after the other.

    Args:
        steps: the local steps of the modules, in order.
        walk: trains them on a batch one after the other; a network's own way (``network.walk``), where it has one.
    """

    def __init__(self, steps: Sequence[LocalStep], walk: Walk = walk) -> None:
        self.steps, self._walk = steps, walk

    def step(self, batch: Batch, index: int, rate: float | None = None, stop: bool = False) -> list[Trained]:
        """Train every module on one batch (Algorithms 1 and 2)."""
        return [Trained(batch.labels, self._walk(self.steps, batch, index, rate), batch.examples)]
