"""A whole set of images on the device, cut into batches that can each be made again on their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from locallearn import seeding
from locallearn.config import AugmentConfig
from locallearn.data.augment import augment as change
from locallearn.data.augment import crop_boxes
from locallearn.data.datasets import Dataset, ImageSet, resolve_augment
from locallearn.data.patches import Masking, draw_visible, shown


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one step.

    With two views of every image B is 2N: the first views of all N images, then their second views in the same order.

    Attributes:
        images: float [B, C, H, W], augmented and normalised; in masked training their visible patches alone
            (:func:`locallearn.data.patches.shown`).
        labels: int64 [B].
        pixels: float [B, C, H, W] in [0, 1], augmented and not normalised (InfoPro reconstructs them).
        step: position in the epoch, from 0.
        boxes: int64 [B, 4], the part of its image that each of two views shows: top, left, height, width [pixels].
        scores: float [B, B], how similar a scorer finds each pair of views (:mod:`locallearn.training.scorers`).
        visible: int64 [B, V], numbers of the patches that masked training shows.
    """

    images: Tensor
    labels: Tensor
    pixels: Tensor
    step: int
    # factories, for a plain default is an attribute of the class, which a late batch would find in place of its own
    boxes: Tensor | None = field(default_factory=lambda: None)
    scores: Tensor | None = field(default_factory=lambda: None)
    visible: Tensor | None = field(default_factory=lambda: None)

    def with_scores(self, scores: Tensor) -> Batch:
        """The same with these similarities."""
        return Batch(self.images, self.labels, self.pixels, self.step, self.boxes, scores)


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


def steps_of_epoch(images: int, batch_size: int) -> int:
    """Batches of one epoch; the last may be smaller, but one single image is left out (batch norm needs two)."""
    whole, rest = divmod(images, batch_size)
    return whole + (rest > 1)


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
        views: augmented views of every image that :meth:`epoch` gives, 1 or 2, each with draws of its own.
        masking: what :meth:`epoch` shows of every image; all of it by default.

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
        views: int = 1,
        masking: Masking | None = None,
    ) -> None:
        # Channels-last in any case: augmentation moves whole pixels.
        self._images = images.images.contiguous(memory_format=torch.channels_last).to(device)
        self._labels = images.labels.to(device)
        self._augment = None if augment is None else resolve_augment(augment, dataset)
        self._mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(dataset.std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._seed = seed
        self._views = views
        self._masking = masking
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch, as :func:`steps_of_epoch`."""
        return steps_of_epoch(len(self._labels), batch_size)

    def smallest(self, batch_size: int) -> int:
        """Images of the smallest batch of an epoch, which is its last one."""
        rest = len(self._labels) % batch_size
        return rest if rest > 1 or len(self._labels) < batch_size else batch_size

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Shuffled and augmented batches of one epoch.

        Args:
            epoch: number of the epoch; another one gives another order and other draws.
            batch_size: images of a batch, whatever the number of views [images].
            start: step to begin at; the batches are those that the whole epoch has from there on.
        """
        for step, chosen in enumerate(self.order(epoch, batch_size)[start:], start):
            labels = self._labels[chosen].repeat(self._views)
            yield LateBatch(labels, step, partial(self._make, chosen, epoch, step))

    def _make(self, chosen: Tensor, epoch: int, step: int) -> Batch:
        images, labels = self._images.index_select(0, chosen), self._labels[chosen]
        if self._views == 2:
            return self._two_views(images, labels, epoch, step)
        if self._augment is not None:
            images = change(images, self._augment, seeding.derive(self._seed, "augment", epoch, step))
        batch = self._batch(images, labels, step)
        return batch if self._masking is None else self._masked(batch, self._masking, epoch)

    def _masked(self, batch: Batch, masking: Masking, epoch: int) -> Batch:
        count, _, height, width = batch.images.shape
        total = height * width // masking.side**2
        draw = seeding.generator(self._seed, "mask", epoch, batch.step)
        visible = draw_visible(count, total, masking.visible, draw).to(batch.images.device, non_blocking=True)
        return dataclasses.replace(batch, images=shown(batch.images, masking.side, visible), visible=visible)

    def _two_views(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Batch:
        assert self._augment is not None
        count, _, height, width = images.shape
        views, boxes = [], []
        for view in (1, 2):
            seed = seeding.derive(self._seed, "augment", epoch, step, "view", view)
            views.append(change(images, self._augment, seed))
            boxes.append(crop_boxes(self._augment, count, height, width, seed))
        batch = self._batch(torch.cat(views), labels.repeat(2), step)
        return dataclasses.replace(batch, boxes=torch.cat(boxes).to(images.device, non_blocking=True))

    def order(self, epoch: int, batch_size: int) -> list[Tensor]:
        """Positions of the images of every batch of an epoch, int64 [B] each, on the device."""
        order = torch.randperm(len(self._labels), generator=seeding.generator(self._seed, "order", epoch))
        return list(order.to(self._labels.device).split(batch_size))[: self.steps(batch_size)]

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """All images in their own order and unchanged, for evaluation; a single last image is kept."""
        for step, start in enumerate(range(0, len(self._labels), batch_size)):
            chosen = slice(start, start + batch_size)
            yield self._batch(self._images[chosen], self._labels[chosen], step)

    def _batch(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        pixels = images if images.is_floating_point() else images.float().div_(255)
        pixels = pixels.contiguous(memory_format=self._format)
        return Batch((pixels - self._mean).div_(self._std), labels, pixels, step)
