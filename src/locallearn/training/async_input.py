"""What a module's process trains on: the images themselves, or features that the module before sends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from locallearn.config import RunConfig
from locallearn.data.store import Batch, Store
from locallearn.runtime.boundary import BoundaryError, BoundaryReceiver, Message
from locallearn.runtime.replay import Sample
from locallearn.training.stop import StopRequest

WAIT_SECONDS = 0.2
"""A process that waits for features looks up this often [s]."""


class Given(NamedTuple):
    """What a module is given for one step.

    Attributes:
        features: of the batch; of the first module its images.
        batch: the batch.
        epoch: that it is of, counted from 0.
        sample: how old the features are and how often they were used; None for images.
    """

    features: Tensor
    batch: Batch
    epoch: int
    sample: Sample[Message] | None


class ModuleInput:
    """Features and their batches, one step after the other.

    Args:
        config: of the run.
        store: makes the batches.
        device: where features go.
        receiver: of features; None for the first module.
        link: how messages name the two modules.
        stop: asks for an end.

    Attributes:
        waited: how long the last features were waited for [s].
    """

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        device: torch.device,
        receiver: BoundaryReceiver | None,
        link: str,
        stop: StopRequest,
    ) -> None:
        self._size, self._channels_last = config.train.batch_size, config.train.channels_last
        self._store, self._device, self._receiver, self._link, self._stop = store, device, receiver, link, stop
        self.waited = 0.0

    def batches(self, step: int, fresh: bool = False) -> Iterator[Given | None]:
        """What the module is given from a step on, without end; None once the launcher asks for an end.

        Args:
            step: of the first module's; the others train on what comes.
            fresh: every batch once at most.
        """
        if self._receiver is None:
            epoch, start = divmod(step, self._store.steps(self._size))
            while True:
                for batch in self._store.epoch(epoch, self._size, start):
                    yield None if self._stop.requested else Given(batch.images, batch, epoch, None)
                epoch, start = epoch + 1, 0
        while True:
            begin = time.perf_counter()
            sample = None
            while sample is None and not self._stop.requested:
                sample = self._receiver.take(WAIT_SECONDS, fresh)
            self.waited = time.perf_counter() - begin
            yield None if sample is None else self._received(sample)

    def _received(self, sample: Sample[Message]) -> Given:
        """The batch that received features are of, made again from its number."""
        message = sample.item
        batch = next(self._store.epoch(message.epoch, self._size, message.step))
        if len(batch.labels) != len(message.features):
            counts = f"{len(message.features)} images' features came for a batch of {len(batch.labels)}"
            raise BoundaryError(f"between {self._link}: {counts}")
        features = message.features.to(self._device)
        if features.dim() == 4 and self._channels_last:
            features = features.contiguous(memory_format=torch.channels_last)
        return Given(features, batch, message.epoch, sample)
