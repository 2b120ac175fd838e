"""Overlapping stages on several threads: a stage is updated when the stage after it has handed its gradient back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from locallearn.core.local_step import LocalStep
from locallearn.core.module import each_of
from locallearn.core.overlap import CLASSIFIER, Waiting, check_reads
from locallearn.losses.objectives import LocalLoss
from locallearn.runtime.threads import Job, ThreadsRuntime


@dataclass
class _Half:
    """A stage on a batch, until it is updated.

    Attributes:
        own: the stage with its graph and its losses, once its own loss has been walked backward.
        returned: the gradient by its features, once the next stage has walked its loss backward; None in it where
            nothing comes back.
    """

    own: tuple[Waiting, LocalLoss] | None = None
    returned: tuple[Tensor | None] | None = None


class OverlappingThreadsRuntime(ThreadsRuntime):
    """Train stages at the same time, each by its own loss and by that of the stage after it.

    A stage hands its features on before its own backward pass. It begins the next batch when it has been updated on
    this one, for which the next stage's loss must have come back through it: so while stage k + 1 trains on a batch,
    stage k waits, and stages k - 1 and k + 2 train on the batches after and before it. Whichever of the two backward
    passes ends last updates the stage, its own gradient first, so that weights are those of the inline walk bit for
    bit. Activations of two stages are held for each that trains.

    Raises:
        ConfigError: a stage reads weights that the one before it trains, and that wait for its own loss.
    """

    graphs = 2

    def __init__(self, steps: Sequence[LocalStep], at_once: int, threads: int) -> None:
        super().__init__(steps, at_once, threads)
        self._halves: dict[tuple[int, int], _Half] = {}
        for k, step in enumerate(steps):
            check_reads(k, step.module.reads, "threads")

    def _train(self, module: int, job: Job, features: Tensor) -> list[tuple[int, LocalLoss]]:
        self._take(module, job)
        step = self.steps[module]
        reaches = []
        if module and step.module.name != CLASSIFIER:
            reaches = [each_of(features)[0].requires_grad_()]
        with self._measured(module):
            hand_on = None if self._meters else self._hands_on(module, job)
            out, loss = step.compute(features, job.batch, job.index, hand_on)
            step.backward(loss, reaches, keep=True)
            own = Waiting(step, step.module.features(out)), step.module.told(loss)
        if self._meters:
            self._hands_on(module, job)(step.module.handed_on(out))
        last = module + 1 == len(self.steps)
        with self._changed:
            mine = self._half(module, job)
            mine.own, mine.returned = own, (None,) if last else mine.returned
            below = self._half(module - 1, job) if module else None
            if below is not None:
                below.returned = (reaches[0].grad if reaches else None,)
            ready = [k for k in (module - 1, module) if k >= 0 and self._is_whole(k, job)]
            halves = [(k, self._halves.pop((job.number, k))) for k in ready]
        return [(k, self._end(half, job)) for k, half in halves]

    def _half(self, module: int, job: Job) -> _Half:
        return self._halves.setdefault((job.number, module), _Half())

    def _is_whole(self, module: int, job: Job) -> bool:
        half = self._halves.get((job.number, module))
        return half is not None and half.own is not None and half.returned is not None

    def _end(self, half: _Half, job: Job) -> LocalLoss:
        assert half.own is not None
        assert half.returned is not None
        waiting, loss = half.own
        waiting.end(half.returned[0], job.rate)
        return loss
