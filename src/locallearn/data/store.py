"""A whole set of images on the device, cut into batches that can each be made again on their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from locallearn import seeding
from locallearn.config import AugmentConfig
from locallearn.data.augment import augment as change
from locallearn.data.datasets import Dataset, ImageSet, resolve_augment


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one step.

    Attributes:
        images: float [B, C, H, W], augmented and normalised.
        labels: int64 [B].
        pixels: float [B, C, H, W] in [0, 1], augmented and not normalised (InfoPro reconstructs them).
        step: position in the epoch, from 0.
    """

    images: Tensor
    labels: Tensor
    pixels: Tensor
    step: int


class LateBatch(Batch):
    """A batch whose images are made when they are first asked for, which not every process does.

    Args:
        labels: int64 [B].
        step: position in the epoch, from 0.
        make: makes the batch.
    """

    def __init__(self, labels: Tensor, step: int, make: Callable[[], Batch]) -> None:
        self.__dict__.update(labels=labels, step=step, _make=make)

    def __getattr__(self, name: str) -> Any:
        """Only called for what is not there yet."""
        if "_make" not in self.__dict__:
            raise AttributeError(name)
        made = self.__dict__.pop("_make")()
        self.__dict__.update(vars(made) | {"labels": self.labels})
        return getattr(self, name)


class ImageStore:
    """All images of a set as one uint8 tensor on the device.

    The order of an epoch and every draw of a batch derive from (seed, epoch, step) only: any batch can be made
    again on its own, in any process and on any device, and torch's global generator plays no part.

    Args:
        images: the images.
        dataset: what they belong to; its mean and standard deviation normalise them.
        augment: how :meth:`epoch` changes them; ``None`` leaves them as they are.
        device: where they are kept and changed.
        seed: seed of the run.
        channels_last: give images in channels-last memory.

    Raises:
        ConfigError: ``augment`` does not fit the images.
    """

    def __init__(
        self,
        images: ImageSet,
        dataset: Dataset,
        augment: AugmentConfig | None,
        device: torch.device | str,
        seed: int,
        channels_last: bool = True,
    ) -> None:
        # Channels-last in any case: augmentation moves whole pixels.
        self._images = images.images.contiguous(memory_format=torch.channels_last).to(device)
        self._labels = images.labels.to(device)
        self._augment = None if augment is None else resolve_augment(augment, dataset)
        self._mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(dataset.std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._seed = seed
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch; the last may be smaller, but one single image is left out (batch norm needs two)."""
        whole, rest = divmod(len(self._labels), batch_size)
        return whole + (rest > 1)

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Shuffled and augmented batches of one epoch.

        Args:
            epoch: number of the epoch; another one gives another order and other draws.
            batch_size: images of a batch [images].
            start: step to begin at; the batches are those that the whole epoch has from there on.
        """
        order = torch.randperm(len(self._labels), generator=seeding.generator(self._seed, "order", epoch))
        order = order.to(self._labels.device)
        for step in range(start, self.steps(batch_size)):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            yield LateBatch(self._labels[chosen], step, partial(self._make, chosen, epoch, step))

    def _make(self, chosen: Tensor, epoch: int, step: int) -> Batch:
        images = self._images.index_select(0, chosen)
        if self._augment is not None:
            images = change(images, self._augment, seeding.derive(self._seed, "augment", epoch, step))
        return self._batch(images, self._labels[chosen], step)

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """All images in their own order and unchanged, for evaluation; a single last image is kept."""
        for step, start in enumerate(range(0, len(self._labels), batch_size)):
            chosen = slice(start, start + batch_size)
            yield self._batch(self._images[chosen], self._labels[chosen], step)

    def _batch(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        pixels = images if images.is_floating_point() else images.float().div_(255)
        pixels = pixels.contiguous(memory_format=self._format)
        return Batch((pixels - self._mean).div_(self._std), labels, pixels, step)
