"""Batches of images that can each be made again on their own, and the store of a set that fits the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from locallearn import seeding
from locallearn.arguments import checked_names
from locallearn.config import AugmentConfig
from locallearn.data.augment import augment as change
from locallearn.data.augment import crop_boxes
from locallearn.data.datasets import Dataset, ImageSet, resolve_augment
from locallearn.data.own import AugmentationInput, augmentations
from locallearn.data.patches import Masking, draw_visible, shown
from locallearn.errors import UsageError


@checked_names
@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one step.

    With two views of every image B is 2N: the first views of all N images, then their second views in the same order.

    Attributes:
        images: float [B, C, H, W], augmented and normalised; in masked training their visible patches alone
            (``locallearn.data.patches.shown``).
        labels: int64 [B].
        pixels: float [B, C, H, W] in [0, 1], augmented and not normalised (InfoPro reconstructs them); by default the
            images.
        step: position in the epoch, from 0.
        boxes: int64 [B, 4], the part of its image that each of two views shows: top, left, height, width [pixels].
        scores: float [B, B], how similar a scorer finds each pair of views (``locallearn.training.scorers``).
        visible: int64 [B, V], numbers of the patches that masked training shows.
    """

    images: Tensor
    labels: Tensor
    # factories, for a plain default is an attribute of the class, which a late batch would find in place of its own
    pixels: Tensor = field(default_factory=lambda: None)  # type: ignore[assignment]
    step: int = field(default_factory=int)
    boxes: Tensor | None = field(default_factory=lambda: None)
    scores: Tensor | None = field(default_factory=lambda: None)
    visible: Tensor | None = field(default_factory=lambda: None)

    def __post_init__(self) -> None:
        if self.pixels is None:
            object.__setattr__(self, "pixels", self.images)

    @property
    def examples(self) -> int:
        """B."""
        return len(self.labels)

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


Augmentation = Callable[[Tensor], Tensor]
"""Changes float images [B, C, H, W] in [0, 1] on the device, and may draw from torch's global generator (kornia's and
torchvision's do); what it draws is seeded with the batch."""

StepImages = Callable[[int], list[Tensor]]
"""Gives uint8 images [B, C, H, W] of a step on the device, one tensor a view."""


def view_seeds(seed: int, epoch: int, step: int, views: int) -> list[int]:
    """Seeds of a batch's changes, one a view."""
    keys = ("augment", epoch, step)
    return [seeding.derive(seed, *keys, *(("view", view) if views > 1 else ())) for view in range(1, views + 1)]


class Store:
    """Batches of a set of images.

    The order of an epoch and every draw of a batch derive from (seed, epoch, step) only: any batch can be made
    again on its own, in any process and on any device, and torch's global generator plays no part.

    Args:
        labels: int64 [N].
        dataset: what the images belong to; its mean and standard deviation normalise them.
        augment: how ``epoch`` changes them: settings, or a function of your own alone; ``None`` leaves them as
            they are.
        device: where they are changed.
        seed: seed of the run.
        channels_last: give images in channels-last memory.
        views: augmented views of every image that ``epoch`` gives, 1 or 2, each with draws of its own.
        masking: what ``epoch`` shows of every image; all of it by default.

    Raises:
        ConfigError: ``augment`` does not fit the images.
    """

    def __init__(
        self,
        labels: Tensor,
        dataset: Dataset,
        augment: AugmentConfig | Augmentation | None,
        device: torch.device | str,
        seed: int,
        channels_last: bool = True,
        views: int = 1,
        masking: Masking | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._labels = labels.to(device)
        self._shape = dataset.train.shape
        self._augment: AugmentConfig | None = None
        self._own: Augmentation | None = None
        if isinstance(augment, AugmentConfig):
            self._augment = resolve_augment(augment, dataset)
            if augment.own is not None:
                options = augmentations.options(augment.own, augment.own_options, "augment.own_options")
                given = AugmentationInput(*dataset.train.shape, options)
                self._own = augmentations.build(augment.own, given)
        else:
            self._own = augment
        self._mean = torch.tensor(dataset.mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(dataset.std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._seed = seed
        self._views = views
        self._masking = masking
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def steps(self, batch_size: int) -> int:
        """Batches of one epoch, see ``steps_of_epoch``."""
        return steps_of_epoch(len(self._labels), batch_size)

    def smallest(self, batch_size: int) -> int:
        """Images of the smallest batch of an epoch, which is its last one."""
        rest = len(self._labels) % batch_size
        return rest if rest > 1 or len(self._labels) < batch_size else batch_size

    def order(self, epoch: int, batch_size: int) -> list[Tensor]:
        """Positions of the images of every batch of an epoch, int64 [B] each, on the device."""
        order = torch.randperm(len(self._labels), generator=seeding.generator(self._seed, "order", epoch))
        return list(order.to(self.device).split(batch_size))[: self.steps(batch_size)]

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Shuffled and augmented batches of one epoch.

        Args:
            epoch: number of the epoch; another one gives another order and other draws.
            batch_size: images of a batch, whatever the number of views [images].
            start: step to begin at; the batches are those that the whole epoch has from there on.
        """
        order = self.order(epoch, batch_size)
        images = self._images_of(order, epoch)
        for step, chosen in enumerate(order[start:], start):
            labels = self._labels[chosen].repeat(self._views)
            yield LateBatch(labels, step, partial(self._make, images, chosen, epoch, step))

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """All images in their own order and unchanged, for evaluation; a single last image is kept."""
        raise NotImplementedError

    def _images_of(self, batches: Sequence[Tensor], epoch: int) -> StepImages:
        """What gives the images of an epoch's batches, as they are before anything is changed on the device."""
        raise NotImplementedError

    def _boxes(self, chosen: Tensor, seed: int) -> Tensor:
        """The part of its image that each of the chosen ones is cut to, [B, 4]."""
        assert self._augment is not None
        return crop_boxes(self._augment, len(chosen), *self._shape[1:], seed)

    def _make(self, images: StepImages, chosen: Tensor, epoch: int, step: int) -> Batch:
        seeds = view_seeds(self._seed, epoch, step, self._views)
        views = [self._changed(view, seed) for view, seed in zip(images(step), seeds, strict=True)]
        labels = self._labels[chosen].repeat(self._views)
        batch = self.made(views[0] if self._views == 1 else torch.cat(views), labels, step)
        if self._views > 1 and self._augment is not None:
            boxes = torch.cat([self._boxes(chosen, seed) for seed in seeds])
            batch = dataclasses.replace(batch, boxes=boxes.to(self.device, non_blocking=True))
        return batch if self._masking is None else self._masked(batch, self._masking, epoch)

    def _changed(self, images: Tensor, seed: int) -> Tensor:
        if self._augment is not None:
            images = change(images, self._augment, seed)
        if self._own is None:
            return images
        images = images if images.is_floating_point() else images.float().div_(255)
        with seeding.seeded(seed, "own"):
            changed = self._own(images)
        if not isinstance(changed, Tensor) or changed.shape != images.shape or not changed.is_floating_point():
            found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise UsageError(f"augment: {self._own} gave {found}; expected float images {tuple(images.shape)}")
        return changed

    def _masked(self, batch: Batch, masking: Masking, epoch: int) -> Batch:
        count, _, height, width = batch.images.shape
        total = height * width // masking.side**2
        draw = seeding.generator(self._seed, "mask", epoch, batch.step)
        visible = draw_visible(count, total, masking.visible, draw).to(batch.images.device, non_blocking=True)
        return dataclasses.replace(batch, images=shown(batch.images, masking.side, visible), visible=visible)

    def made(self, images: Tensor, labels: Tensor, step: int) -> Batch:
        """A batch of these images: pixels in [0, 1], and normalised."""
        pixels = images if images.is_floating_point() else images.float().div_(255)
        pixels = pixels.contiguous(memory_format=self._format)
        return Batch((pixels - self._mean).div_(self._std), labels, pixels, step)


class ImageStore(Store):
    """All images of a set as one uint8 tensor on the device.

    Args:
        images: the images.
        others: as for ``Store``, from ``dataset`` on.
    """

    def __init__(self, images: ImageSet, *others: Any, **options: Any) -> None:
        super().__init__(images.labels, *others, **options)
        # Channels-last in any case: augmentation moves whole pixels.
        self._images = images.images.contiguous(memory_format=torch.channels_last).to(self.device)

    def _images_of(self, batches: Sequence[Tensor], epoch: int) -> StepImages:
        return lambda step: [self._images.index_select(0, batches[step])] * self._views

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """All images in their own order and unchanged, for evaluation; a single last image is kept."""
        for step, start in enumerate(range(0, len(self._labels), batch_size)):
            chosen = slice(start, start + batch_size)
            yield self.made(self._images[chosen], self._labels[chosen], step)
