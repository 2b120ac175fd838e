"""The sequential runtime: one module trains, on the features of the ones before it, which are trained and frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from locallearn.config import SequentialConfig
from locallearn.core.local_step import LocalStep, autocast
from locallearn.core.module import LocalModule
from locallearn.data.store import Batch
from locallearn.runtime.feature_cache import FeatureCache, Kept, pack, unpack
from locallearn.runtime.inline import Runtime, Trained


class SequentialRuntime(Runtime):
    """Train one module on one batch after the other.

    Frozen modules run in eval mode (running statistics of batch norm), as they do once training has ended. With a
    cache the features of each of them are rounded to its number format, kept or not: so what a module learns from
    does not depend on what happens to fit, nor on a resume, which finds the cache empty.

    Args:
        local: the local step of the module that trains.
        frozen: the modules before it, in order, trained.
        settings: the number format of kept features, and how many epochs they are kept for.
        steps_per_epoch: steps of an epoch.
        cache: keeps features; None computes them again at every step.
    """

    def __init__(
        self,
        local: LocalStep,
        frozen: Sequence[LocalModule],
        settings: SequentialConfig,
        steps_per_epoch: int,
        cache: FeatureCache | None = None,
    ) -> None:
        self.local = local
        self.frozen = frozen
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.cache = cache

    def step(self, batch: Batch, index: int, rate: float | None = None, stop: bool = False) -> list[Trained]:
        """Train the module on one batch; ``index`` counts its own steps from 0."""
        _, loss = self.local(self.features(batch, index), batch, index, rate)
        return [Trained(batch.labels, [loss], batch.examples)]

    @torch.no_grad()
    def features(self, batch: Batch, index: int) -> Tensor:
        """What the module sees of a batch: the images, or the features of the last frozen module."""
        epoch = index // self.steps_per_epoch % self.settings.cache_epochs
        key, level, x = (epoch, batch.step), 0, batch.images
        found = None if self.cache is None or not self.frozen else self.cache.get(key)
        if found is not None:
            level, x = found[0], self._unpack(found[1], batch)
        for module in self.frozen[level:]:
            module.eval()
            with autocast(x.device, self.local.precision):
                x = module(x)
            if self.cache is not None:
                kept = pack(x, self.settings.cache_dtype)
                x = self._unpack(kept, batch)
                level += 1
                if level == len(self.frozen):
                    self.cache.put(key, level, kept)
        return x

    def _unpack(self, kept: Kept, batch: Batch) -> Tensor:
        channels_last = batch.images.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return unpack(kept, batch.images.device, layout)
