"""What every data set is looked at for, a user's own too, before anything is trained on it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from locallearn.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from locallearn.data.datasets import Dataset, ImageSet, ImagesOnDisk


def inspected(dataset: Dataset) -> Dataset:
    """The data set with labels as int64, if images, labels, classes and moments go together.

    Raises:
        DataError: they do not; the message names the set, what was found, and what would be right.
    """
    where = f"data set {dataset.name!r}"
    classes = dataset.classes
    if isinstance(classes, str) or not classes or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{where}: classes are {classes!r}; expected the name of each")
    train = _part(dataset.train, len(classes), f"{where}, training images")
    test = _part(dataset.test, len(classes), f"{where}, test images")
    validation = dataset.validation
    if validation is not None:
        validation = _part(validation, len(classes), f"{where}, validation images")
        if validation.shape != train.shape:
            raise DataError(f"{where}: validation images are of another shape than training images")
    if train.shape != test.shape:
        shapes = " and ".join("x".join(map(str, part.shape)) for part in (train, test))
        raise DataError(f"{where}: training and test images are of different shapes: {shapes}")
    for name in ("mean", "std"):
        _check_moments(getattr(dataset, name), dataset.channels, name == "std", f"{where}: {name}")
    return dataclasses.replace(dataset, train=train, test=test, validation=validation, classes=tuple(classes))


def _part(part: ImageSet | ImagesOnDisk, classes: int, where: str) -> ImageSet | ImagesOnDisk:
    import torch

    from locallearn.data.datasets import ImageSet, ImagesOnDisk

    if not isinstance(part, ImageSet) and isinstance(part, ImagesOnDisk):  # which asks for every attribute
        if not isinstance(part.labels, torch.Tensor) or part.labels.dtype != torch.int64 or part.labels.dim() != 1:
            raise DataError(f"{where}: labels are {_kind(part.labels)}; expected int64 [N]")
        _check_labels(part.labels, classes, where)
        return part
    images: Any = getattr(part, "images", None)
    labels: Any = getattr(part, "labels", None)
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, torch.Tensor):
            raise DataError(f"{where}: {name} are a {type(value).__name__}; expected a tensor")
    if images.dtype != torch.uint8 or images.dim() != 4 or min(images.shape[1:]) == 0:
        odd = ", some NaN or infinite" if images.is_floating_point() and not images.isfinite().all() else ""
        raise DataError(f"{where}: images are {_kind(images)}{odd}; expected uint8 [N, C, H, W]")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.dim() != 1:
        raise DataError(f"{where}: labels are {_kind(labels)}; expected int64 [N]")
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(images)} images, but {len(labels)} labels")
    labels = labels.to(torch.int64)
    _check_labels(labels, classes, where)
    return ImageSet(images.contiguous(), labels)


def _check_labels(labels: Tensor, classes: int, where: str) -> None:
    if len(labels) == 0:
        raise DataError(f"{where}: there are none")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        i = int(outside.nonzero()[0])
        raise DataError(
            f"{where}: label {int(labels[i])} of image {i} is outside 0..{classes - 1}, the numbers of classes"
        )


def _kind(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _check_moments(values: Any, channels: int, positive: bool, where: str) -> None:
    expected = f"{channels} finite numbers{' above 0' if positive else ''}, one a channel"
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise DataError(f"{where} is {values!r}; expected {expected}") from None
    if len(numbers) != channels or not all(math.isfinite(n) and (n > 0 or not positive) for n in numbers):
        raise DataError(f"{where} is {tuple(numbers)}; expected {expected}")
