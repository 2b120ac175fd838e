"""Overlapping stages in several processes: the gradient of a loss goes back to the process of the stage before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from locallearn.core.module import each_of
from locallearn.core.overlap import CLASSIFIER, Waiting, check_reads
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss
from locallearn.runtime.distributed import WIRE, DistributedRuntime
from locallearn.runtime.inline import Trained
from locallearn.runtime.messages import Link
from locallearn.runtime.transport import GRADIENTS, Receiver, Sender


class OverlappingDistributedRuntime(DistributedRuntime):
    """Train this rank's stages, each by its own loss and by that of the stage after it.

    A rank sends its last stage's features before its own backward pass, and ends the batch when the gradient by them
    has come back from the next rank, which sends it as soon as it has walked its first stage's loss backward. So it
    waits for that at every batch.
    Own gradient first, then the one that comes back, as inline: along depth weights are the same bit for bit.
    Gradients travel in the number format of features (``mesh.wire``). Arguments as of ``DistributedRuntime``.

    Raises:
        ConfigError: a stage reads weights that the one before it trains, and that wait for its own loss.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for reader, owner in self._read:
            check_reads(reader, [owner], "distributed")
        self._below: Waiting | None = None
        self._given_back: Sender | None = None
        self._comes_back: Receiver | None = None

    def open(self, start: int, end: int) -> None:
        """Connect the stages, forward and one cut back.

        Args:
            start: the first step.
            end: the step after the last one.
        """
        super().open(start, end)
        world, ahead, wire = self.world, self.config.in_flight, WIRE[self.config.wire]
        group, device, here = world.features, world.device, world.names[world.rank]
        for action in self.actions:
            links = [Link(rank, world.names[rank]) for rank in action.ranks]
            above = action.module + 1
            if action.kind == "receive":
                self._given_back = Sender(above, links, group, device, ahead, wire, GRADIENTS)
            elif action.kind == "send":
                shape = None if self.shapes is None else self.shapes[action.module]
                dtype = None if self.types is None else self.types[action.module]
                self._comes_back = Receiver(
                    above, links, here, group, device, shape, dtype, start, end, ahead, wire, GRADIENTS
                )

    def _all_senders(self) -> list[Sender]:
        return [*super()._all_senders(), *([] if self._given_back is None else [self._given_back])]

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for others so far, for gradients that come back too."""
        return super().waited + (0.0 if self._comes_back is None else self._comes_back.waited)

    def step(self, batch: Batch, index: int, rate: float | None = None, stop: bool = False) -> list[Trained]:
        """Train this rank's stages on one batch; as ``DistributedRuntime.step``."""
        found = super().step(batch, index, rate, stop)
        gradient = None
        if self._comes_back is not None:
            assert self._below is not None
            gradient = self._comes_back.get(len(self._below.features)).features
        self._end_below(gradient, index, rate)
        return found

    def _train(
        self, module: int, features: Any, batch: Batch, index: int, rate: float | None, parts: Sequence[range]
    ) -> tuple[Any, LocalLoss]:
        self._prepare(module, index, parts)
        step = self.steps[module]
        reaches = [each_of(features)[0].requires_grad_()] if module and step.module.name != CLASSIFIER else []
        out, loss = step.compute(features, batch, index, self._hands_on(module, index))
        step.backward(loss, reaches, keep=True)
        gradient = reaches[0].grad if reaches else None
        if self._below is not None:
            self._end_below(gradient, index, rate)
        elif self._given_back is not None:
            self._given_back.put(torch.zeros_like(reaches[0]) if gradient is None else gradient, index, self.stopping)
        self._below = Waiting(step, step.module.features(out))
        return step.module.handed_on(out), step.module.told(loss)

    def _end_below(self, gradient: Tensor | None, index: int, rate: float | None) -> None:
        """Update the stage that waits, and send what others read of it."""
        below, self._below = self._below, None
        assert below is not None
        below.end(gradient, rate)
        module = next(k for k, step in self.steps.items() if step is below.step)
        self._send_weights(module, index)
