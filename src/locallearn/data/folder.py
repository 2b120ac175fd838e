"""A user's own images: ``train/<class>/*.png`` and ``test/<class>/*.png``, or a folder without labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from locallearn.config import AugmentConfig, DataConfig, ImageSize, sides
from locallearn.data.datasets import Dataset, ImageSet, data_root, datasets
from locallearn.data.images import SUFFIXES, decode, fit
from locallearn.errors import DataError
from locallearn.files import readable

if TYPE_CHECKING:  # names of data sets are looked up before torch is imported
    from torch import Tensor


_EVERY = 5
"""One of so many images of a class is for testing, where the folder does not tell."""

_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")
"""Folders of these names are parts of a set and no classes."""

_NAMED = 200
"""How many damaged images one message names."""


@datasets.register("folder")
def read_folder_of_images(config: DataConfig) -> Dataset:
    """Images of ``ROOT/train/<class>/`` and ``ROOT/test/<class>/`` (or ``val``), as RGB of one size.

    Where there is ``ROOT/<class>/`` alone, every fifth image of a class is for testing. Images are brought to
    ``data.image_size`` by ``locallearn.data.images.fit``. Images of the classes take turns, so that the first N are a
    fair subset. Mean and standard deviation are those of the training images.

    Raises:
        DataError: a folder or its images are missing, images cannot be read (all of them are named), or the classes
            do not agree.
    """
    root, size = data_root(config), config.image_size or 32
    height, width = sides(size)
    classes, train_files, test_files = listed(root, config.download)
    train_files, test_files = train_files[: config.train_limit or None], test_files[: config.test_limit or None]
    train, test = _decoded((train_files, test_files), size)
    mean, std = _moments(train.images)
    return Dataset(
        name="folder",
        train=train,
        test=test,
        classes=tuple(map(readable, classes)),
        mean=mean,
        std=std,
        augment=AugmentConfig(crop_padding=min(height, width) // 8, padding_mode="reflect", flip=0.5),
        source=f"images of the folder {readable(root.name)}, resized to {height} x {width}",
    )


Listed = list[tuple[int, Path]]
"""Labels and files of images."""


def listed(root: Path, download: bool = False) -> tuple[tuple[str, ...], Listed, Listed]:
    """Classes, training images and test images of a folder, none of which is read.

    Args:
        root: the folder.
        download: whether it was asked for that a missing set be fetched, which no folder can be.

    Raises:
        DataError: it is not there, not laid out as ``read_folder_of_images`` says, or a class has no images.
    """
    nothing = "; there is nothing to download" if download else ""
    if not root.is_dir():
        raise DataError(f"{root} (data.root) is no folder; expected one with train and test (or val){nothing}")
    test = root / "test" if (root / "test").is_dir() else root / "val"
    if (root / "train").is_dir() and test.is_dir():
        classes = class_names(root / "train", test)
        return classes, images_of_classes(root / "train", classes), images_of_classes(test, classes)
    classes = _classes(root)
    if len(classes) < 2 or any(name.lower() in _PARTS or not _images_in(root / name) for name in classes):
        raise DataError(
            f"{root} (data.root) has no folders train and test (or val); expected train/<class>/*.png and "
            f"test/<class>/*.png, or <class>/*.png{nothing}"
        )
    return classes, *_divided(root, classes)


def _divided(root: Path, classes: Sequence[str]) -> tuple[Listed, Listed]:
    """Training and test images of a folder that has none apart: every fifth image of a class is for testing."""
    train: Listed = []
    test: Listed = []
    seen = [0] * len(classes)
    for label, file in images_of_classes(root, classes):
        seen[label] += 1
        (train if seen[label] % _EVERY else test).append((label, file))
    if min(seen) < _EVERY:
        few = root / classes[seen.index(min(seen))]
        raise DataError(
            f"{few} holds {min(seen)} images; expected at least {_EVERY}, as every {_EVERY}th is for tests"
        )
    return train, test


def read_images(path: Path, size: ImageSize, channels: int) -> tuple[list[str], Tensor]:
    """Images of a folder and its sub-folders, for prediction.

    Args:
        path: the folder.
        size: side that the images get, or height and width [pixels]; see ``locallearn.data.images.fit``.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The files' names relative to ``path``, sorted, and uint8 [N, channels, H, W].

    Raises:
        DataError: there are no images, or some cannot be read.
    """
    files = find_images(path)
    return [readable(file.relative_to(path).as_posix()) for file in files], decode_images(files, size, channels)


def find_images(path: Path) -> list[Path]:
    """The images of a folder and its sub-folders, sorted; hidden files and what hidden folders hold are left out.

    Raises:
        DataError: there are none.
    """
    if not os.path.exists(path):  # which the length of a name is no error for
        raise DataError(f"{path} is not there; expected a folder of images")
    files = _images_in(path)
    if not files:
        raise DataError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def class_names(train: Path, test: Path) -> tuple[str, ...]:
    """Names of the folders in both folders.

    Raises:
        DataError: they differ.
    """
    classes = _classes(train)
    if (found := _classes(test)) != classes:
        odd = sorted(set(classes) ^ set(found))[0]
        raise DataError(f"{train} and {test} hold different classes: {odd!r} is in one of them only")
    return classes


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith(".")))


def _images_in(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, subs, names in os.walk(folder, onerror=_refuse):
        subs[:] = [sub for sub in subs if not sub.startswith(".")]
        files = (Path(place, name) for name in names if not name.startswith("."))
        # a link that leads nowhere is an image that is missing, and is named as one
        found += (file for file in files if file.suffix.lower() in SUFFIXES and not file.is_dir())
    return sorted(found)


def _refuse(error: OSError) -> None:
    """What cannot be looked into must not be left out in silence."""
    raise DataError(f"{error.filename} cannot be read: {error.strerror}")


def images_of_classes(folder: Path, classes: Sequence[str]) -> list[tuple[int, Path]]:
    """Labels and files of the images in a folder of classes, which take turns.

    Raises:
        DataError: a class has no images, or there is none.
    """
    turns: list[tuple[int, int, Path]] = []
    for label, name in enumerate(classes):
        files = _images_in(folder / name)
        if not files:
            raise DataError(f"{folder / name} holds no images ({', '.join(sorted(SUFFIXES))})")
        turns += [(turn, label, file) for turn, file in enumerate(files)]
    if not turns:
        raise DataError(f"{folder} holds no folders of classes; expected {folder.name}/<class>/*.png")
    return [(label, file) for _, label, file in sorted(turns)]


def _decoded(listed: Sequence[list[tuple[int, Path]]], size: ImageSize) -> list[ImageSet]:
    """The sets of several lists of files, which are read together so that one message names all that are damaged."""
    import torch

    images = decode_images([file for files in listed for _, file in files], size, 3)
    parts = images.split([len(files) for files in listed])
    return [
        ImageSet(part, torch.tensor([label for label, _ in files])) for part, files in zip(parts, listed, strict=True)
    ]


def decode_images(files: Sequence[Path], size: ImageSize, channels: int) -> Tensor:
    """Images as uint8 [N, channels, H, W]; see ``read_images``.

    Raises:
        DataError: some cannot be read; all of them are named.
    """
    import torch

    images = np.empty((len(files), channels, *sides(size)), np.uint8)

    def read(i: int) -> str | None:
        try:
            images[i] = fit(decode(files[i], files[i], channels), size).transpose(2, 0, 1)
        except DataError as error:
            return str(error)
        return None

    # Photographs are large enough for threads to help: their decoder works without the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        bad = [problem for problem in threads.map(read, range(len(files))) if problem is not None]
    if len(bad) > 1:
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise DataError(f"{len(bad)} of {len(files)} images cannot be read: {'; '.join(bad[:_NAMED])}{more}")
    if bad:
        raise DataError(bad[0])
    return torch.from_numpy(images)


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of uint8 [N, C, H, W], as pixels in [0, 1]."""
    import torch

    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.transpose(0, 1):
        # Exact, and without a copy of all images as floats.
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        variance = (share * (values - mean) ** 2).sum()
        means.append(mean.item())
        # A channel that never changes cannot be scaled.
        stds.append(variance.sqrt().item() or 1.0)
    return tuple(means), tuple(stds)
