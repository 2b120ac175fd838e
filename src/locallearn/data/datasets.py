"""Data sets in memory: what a reader gives back, and how one is chosen by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from locallearn.arguments import checked_fields
from locallearn.config import AugmentConfig, DataConfig, ImageSize, sides, size_of
from locallearn.data.inspection import inspected
from locallearn.errors import ConfigError, DataError
from locallearn.registry import Registry
from locallearn.validation import Defaults

if TYPE_CHECKING:  # names of data sets are looked up before torch is imported
    from torch import Tensor


@checked_fields
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels, in the order of the files.

    Attributes:
        images: uint8 [N, C, H, W], contiguous.
        labels: int64 [N], from 0.
    """

    images: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def first(self, count: int) -> ImageSet:
        """The first ``count`` images; a copy, for a view would keep the whole set in memory."""
        return ImageSet(self.images[:count].clone(), self.labels[:count].clone())

    def at(self, positions: Tensor) -> ImageSet:
        """The images at these positions, int64 [n]."""
        return ImageSet(self.images[positions], self.labels[positions])


@runtime_checkable
class ImagesOnDisk(Protocol):
    """Images that are read when they are needed (``locallearn.data.packed.PackedImages``)."""

    labels: Tensor
    """int64 [N], from 0."""

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every image as it is stored, int64 [N, 2] [pixels]."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as it is given to a network."""
        ...

    def decoded(self) -> ImageSet:
        """All of them in memory."""
        ...

    def first(self, count: int) -> ImagesOnDisk:
        """The first ``count`` images."""
        ...

    def at(self, positions: Tensor) -> ImagesOnDisk:
        """The images at these positions, int64 [n]."""
        ...

    def read(self, positions: Sequence[int], boxes: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
        """Some images as uint8 [B, H, W, C], or for every view its boxes' parts of them."""
        ...


@checked_fields
@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set and a test set, and what training needs to know about them.

    Attributes:
        name: the name that it is registered under.
        train: training images.
        test: test images.
        classes: names of the classes; label i means ``classes[i]``.
        mean: mean of every channel of pixels in [0, 1].
        std: standard deviation of every channel of pixels in [0, 1].
        augment: the data set's own custom; fills every ``None`` of the user's settings.
        source: where the images came from, as one line for records (``"CIFAR-10 (official Python archive)"``).
        validation: images that only choose the best checkpoint; None where the test images do. Where a reader gives
            none, they are held out of ``train`` (``data.validation``).
    """

    name: str
    train: ImageSet | ImagesOnDisk
    test: ImageSet | ImagesOnDisk
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: AugmentConfig
    source: str
    validation: ImageSet | ImagesOnDisk | None = None

    @property
    def channels(self) -> int:
        """Channels of an image: 3 for RGB, 1 for grey."""
        return self.train.shape[0]

    @property
    def image_size(self) -> ImageSize:
        """Side of square images, or height and width [pixels]."""
        _, height, width = self.train.shape
        return size_of(height, width)


datasets: Registry[Callable[[DataConfig], Dataset]] = Registry("data.name", "config: DataConfig", Dataset)
"""Readers of data sets by name."""


def load(config: DataConfig) -> Dataset:
    """Read the data set that ``config`` names; ``train_limit`` and ``test_limit`` keep its first N images.

    Of the training images that are left, ``validation`` holds some out. A limit above the number of images keeps all
    of them.

    Raises:
        ConfigError: no data set has this name, or a setting does not fit it.
        DataError: the files are missing, damaged or in a layout that the reader does not know.
    """
    own = datasets.options(config.name, config.options, "data.options")
    try:
        dataset = datasets.build(config.name, dataclasses.replace(config, options=own or Defaults()))
    except OSError as error:
        raise DataError(f"{config.name}: {error}") from None
    dataset = inspected(dataset)
    if config.image_size not in (None, dataset.image_size):
        expected = f"{dataset.image_size} or nothing (only images of a folder or a packed set are resized)"
        raise ConfigError("data.image_size", config.image_size, expected)
    train, test = _first(dataset.train, config.train_limit), _first(dataset.test, config.test_limit)
    if len(train.labels) < 2:
        raise DataError(f"{config.name}: training needs at least two images, there are {len(train.labels)}")
    if dataset.validation is None:  # else the reader knows better
        train, validation = _held_out(train, config.validation)
        dataset = dataclasses.replace(dataset, validation=validation)
    return dataclasses.replace(_normalised_by(config, dataset), train=train, test=test)


def n_held_out(total: int, share: float) -> int:
    """How many of the training images are held out: at least one where a share is asked for, and two are left."""
    return max(0, min(max(1, round(share * total)), total - 2)) if share else 0


def _held_out(
    train: ImageSet | ImagesOnDisk, share: float
) -> tuple[ImageSet | ImagesOnDisk, ImageSet | ImagesOnDisk | None]:
    """The images to train on and those held out: drawn at random, in every run the same, evenly of every class."""
    total = len(train.labels)
    count = n_held_out(total, share)
    if not count:
        return train, None
    import torch

    from locallearn.seeding import generator

    shuffled = torch.randperm(total, generator=generator(0, "validation"))
    by_class = shuffled[train.labels[shuffled].sort(stable=True).indices]
    held = by_class[((torch.arange(count) + 0.5) * total / count).long()]  # at even distances, so of every class
    chosen = torch.zeros(total, dtype=torch.bool).index_fill_(0, held, True)
    return train.at((~chosen).nonzero()[:, 0]), train.at(chosen.nonzero()[:, 0])


def _normalised_by(config: DataConfig, dataset: Dataset) -> Dataset:
    """The data set with the mean and standard deviation that the user gave, where he did."""
    given = {name: getattr(config, name) for name in ("mean", "std") if getattr(config, name) is not None}
    for name, value in given.items():
        if len(value) != dataset.channels:
            raise ConfigError(f"data.{name}", value, f"one number for each of the {dataset.channels} channels")
    return dataclasses.replace(dataset, **given)


def _first(images: ImageSet | ImagesOnDisk, limit: int) -> ImageSet | ImagesOnDisk:
    return images if limit == 0 or limit >= len(images.labels) else images.first(limit)


def resolve_augment(config: AugmentConfig, dataset: Dataset) -> AugmentConfig:
    """Fill every ``None`` of ``config`` with the data set's own custom, and check that the rest fits the images.

    Raises:
        ConfigError: the padding is as large as the image, or colours of grey images shall change.
    """
    custom = AugmentConfig(crop_padding=0, padding_mode="constant", flip=0.0)
    if config.resized_crop is not None:
        if config.crop_padding:
            raise ConfigError("augment.crop_padding", config.crop_padding, "0 or nothing with augment.resized_crop")
        config = dataclasses.replace(config, crop_padding=0)
    for layer in (dataset.augment, config):
        given = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
        custom = dataclasses.replace(custom, **{name: value for name, value in given.items() if value is not None})
    least = min(sides(dataset.image_size))
    if custom.crop_padding is not None and custom.crop_padding >= least:
        expected = f"less than the images of {dataset.name} are wide ({least})"
        raise ConfigError("augment.crop_padding", custom.crop_padding, expected)
    for name in ("jitter", "grey"):
        if getattr(custom, name) > 0 and dataset.channels != 3:
            raise ConfigError(f"augment.{name}", getattr(custom, name), f"0 (the images of {dataset.name} are grey)")
    return custom


def data_root(config: DataConfig) -> Path:
    """The folder to look in: ``config.root``, else ``$LOCALLEARN_DATA``, else ``~/.cache/locallearn/data``."""
    root = config.root or os.environ.get("LOCALLEARN_DATA") or "~/.cache/locallearn/data"
    return Path(root).expanduser()


def own_images(root: Path) -> str:
    """A hint for who asked for a data set by name and has a folder of images of their own; else nothing."""
    return "; its own images are read with --data folder" if (root / "train").is_dir() else ""


def folders(root: Path) -> list[Path]:
    """``root``, its sub-folders and theirs, the nearest first and then by name; hidden ones are left out."""
    level = [str(root)] if root.is_dir() else []
    found = [*level]
    for _ in range(2):
        level = [sub for folder in level for sub in _open_folders(folder)]
        found += level
    return [Path(folder) for folder in found]


def _open_folders(folder: str) -> list[str]:
    # scandir knows what is a folder without asking for every file of a folder of images.
    with os.scandir(folder) as entries:
        subs = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return sorted(sub for sub in subs if os.access(sub, os.R_OK | os.X_OK))


def image_set(parts: list[tuple[np.ndarray, np.ndarray]], classes: int, where: str) -> ImageSet:
    """Join the images and labels of several files.

    Args:
        parts: images uint8 [n, C, H, W] and labels [n] of every file; the list is emptied on the way, so that no
            image is held twice.
        classes: number of classes.
        where: what the files are, for messages.

    Raises:
        DataError: there are no images, or a label is outside [0, classes).
    """
    total = sum(len(labels) for _, labels in parts)
    if total == 0:
        raise DataError(f"{where}: there are no images")
    images = np.empty((total, *parts[0][0].shape[1:]), np.uint8)
    labels = np.empty(total, np.int64)
    start = 0
    while parts:
        some_images, some_labels = parts.pop(0)
        images[start : start + len(some_labels)] = some_images
        labels[start : start + len(some_labels)] = some_labels
        start += len(some_labels)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"{where}: label {wrong[0]} is outside 0..{classes - 1}")
    import torch

    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))
