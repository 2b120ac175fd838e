"""The runtime of several threads: modules of one process train at the same time, each on a batch of its own."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from locallearn.core.local_step import LocalStep
from locallearn.costs.memory import ActivationMeter
from locallearn.data.store import Batch
from locallearn.losses.objectives import LocalLoss
from locallearn.runtime.inline import Runtime, Trained


@dataclass(eq=False)
class Job:
    """One batch on its way through the modules."""

    number: int
    batch: Batch
    index: int
    rate: float | None
    losses: dict[int, LocalLoss]
    """Of the modules that have trained on it; they need not end in order."""


class ThreadsRuntime(Runtime):
    """Train modules at the same time: a module hands its features on before its own backward pass.

    Every module takes the batches in order and sees the features of the batch that it trains on, as computed before
    the update: what is trained is what ``InlineRuntime`` trains, bit for bit where
    operators use as many threads. ``step`` returns while the last batches are still on their way; ``settle`` waits.

    Args:
        steps: the local steps of the modules, in order.
        at_once: modules that train at the same time. Activations of so many are held.
        threads: CPU threads; every module that trains has an equal share of them for its operators.
    """

    graphs = 1
    """Modules whose graphs are held for each one that trains."""

    def __init__(self, steps: Sequence[LocalStep], at_once: int, threads: int) -> None:
        self.steps = steps
        self.at_once = min(at_once, len(steps), threads)
        self.threads = threads
        self._kept: dict[tuple[int, int], Tensor] = {}  # what is read of others, by weight and batch in flight
        self._waiting: list[deque[tuple[Job, Tensor]]] = [deque() for _ in steps]
        self._busy = [False] * len(steps)
        self._trained = [0] * len(steps)
        self._jobs: deque[Job] = deque()
        self._submitted = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._open = False
        self._workers: list[threading.Thread] = []
        self._meters: list[ActivationMeter] | None = None

    def __enter__(self) -> Self:
        self._open, self._before = True, torch.get_num_threads()
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.at_once)]
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Let the modules that train end their step; what waits is not trained."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()
        torch.set_num_threads(self._before)  # workers have set what is the whole process's, too

    def step(self, batch: Batch, index: int, rate: float | None = None, stop: bool = False) -> list[Trained]:
        """Start to train on one batch, and give the batches that all modules have trained on since the last call.

        Returns once so few batches are on their way that the next one is needed.
        """
        job = Job(self._submitted, batch, index, rate, {})
        with self._changed:
            self._submitted += 1
            self._jobs.append(job)
            self._waiting[0].append((job, batch.images))
            self._changed.notify_all()
            self._wait_until_fewer_than(self.at_once + 1)
            return self._done()

    def settle(self) -> list[Trained]:
        """Wait until all modules have trained on every batch, and give what is left."""
        with self._changed:
            self._wait_until_fewer_than(1)
            return self._done()

    def weighed_step(
        self, batch: Batch, index: int, rate: float | None, stop: bool, parameters: Sequence[Tensor]
    ) -> tuple[list[Trained], int]:
        """As ``step``, one module after the other; the bytes are the sum of the largest that are held at once."""
        self._meters = [ActivationMeter(parameters) for _ in self.steps]
        done = self.step(batch, index, rate, stop) + self.settle()
        peaks = sorted((meter.peak_bytes for meter in self._meters), reverse=True)
        self._meters = None
        return done, sum(peaks[: self.at_once * self.graphs])

    # --- bookkeeping, under the lock ---------------------------------------------------------------------------

    def _unfinished(self) -> int:
        return sum(len(job.losses) < len(self.steps) for job in self._jobs)

    def _wait_until_fewer_than(self, jobs: int) -> None:
        self._changed.wait_for(lambda: self._error is not None or self._unfinished() < jobs)
        if self._error is not None:
            raise self._error

    def _done(self) -> list[Trained]:
        done = []
        while self._jobs and len(self._jobs[0].losses) == len(self.steps):
            job = self._jobs.popleft()
            done.append(
                Trained(job.batch.labels, [job.losses[m] for m in range(len(self.steps))], job.batch.examples)
            )
        return done

    def _next(self) -> int | None:
        """The first module that is free and has a batch.

        So those after it find batches waiting, where a module just behind another one would wait for its features,
        or for what it reads of it. How many batches are on their way is bounded by ``step``.
        """
        ready = (
            k
            for k, waiting in enumerate(self._waiting)
            if waiting and not self._busy[k] and self._can_read(k, waiting[0][0])
        )
        return next(ready, None)

    def _can_read(self, module: int, job: Job) -> bool:
        """Whether the modules whose weights this one reads have trained.

        Earlier ones on this batch, later ones on the batch before: these are idle until this one hands on its
        features.
        """
        return all(
            owner in job.losses if owner < module else self._trained[owner] == job.number
            for owner in self.steps[module].module.reads
        )

    # --- the workers -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        torch.set_num_threads(self.threads // self.at_once)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or self._next() is not None)
                module = self._next()
                if not self._open or module is None:
                    return
                self._busy[module] = True
                job, features = self._waiting[module].popleft()
            try:
                ended = self._train(module, job, features)
            except BaseException as error:  # for the thread that asked
                with self._changed:
                    self._error, self._open = error, False
                    self._changed.notify_all()
                return
            for module, loss in ended:
                self._publish(module, job)
                with self._changed:
                    self._busy[module] = False
                    self._trained[module] += 1
                    job.losses[module] = loss
                    self._changed.notify_all()

    def _publish(self, module: int, job: Job) -> None:
        """Keep what later modules read of this one's weights, before its next update: once for all of them.

        It is written where it was for a batch that all modules have trained on: new memory has page faults.
        """
        readers = [step.module.reads.get(module, ()) for step in self.steps[module + 1 :]]
        for source in {id(source): source for pairs in readers for source, _ in pairs}.values():
            place = id(source), job.number % (self.at_once + 1)
            if place in self._kept:
                self._kept[place].copy_(source.detach())
            else:
                self._kept[place] = source.detach().clone()

    def _take(self, module: int, job: Job) -> None:
        """Let the module's own copies, where it has some, be what it reads of others."""
        with torch.no_grad():
            for owner, pairs in self.steps[module].module.reads.items():
                for source, copy in pairs:
                    if copy is source:
                        continue
                    place = id(source), job.number % (self.at_once + 1)
                    value = self._kept[place] if owner < module else source
                    if value is not source and value.device == copy.device:
                        copy.data = value  # nobody writes into it: others look at it too
                    else:
                        copy.copy_(value)

    def _train(self, module: int, job: Job, features: Tensor) -> list[tuple[int, LocalLoss]]:
        """Train a module on a batch; the modules that have ended with it, and their losses."""
        step, hand_on = self.steps[module], self._hands_on(module, job)
        self._take(module, job)
        if self._meters is None:
            return [(module, step(features, job.batch, job.index, job.rate, hand_on)[1])]
        with self._measured(module):
            out, loss = step(features, job.batch, job.index, job.rate)
        hand_on(out)
        return [(module, loss)]

    def _hands_on(self, module: int, job: Job) -> Callable[[Any], None]:
        def hand_on(out: Any) -> None:
            if module + 1 < len(self.steps):
                with self._changed:
                    self._waiting[module + 1].append((job, out))
                    self._changed.notify_all()

        return hand_on

    def _measured(self, module: int) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._meters is None else self._meters[module]
