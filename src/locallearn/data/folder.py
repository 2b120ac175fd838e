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

if TYPE_CHECKING:  # names of data sets are looked up before torch is imported
    from torch import Tensor


@datasets.register("folder")
def read_folder_of_images(config: DataConfig) -> Dataset:
    """Images of ``ROOT/train/<class>/`` and ``ROOT/test/<class>/`` (or ``val``), as RGB of one size.

    Images are brought to ``data.image_size`` by :func:`locallearn.data.images.fit`. Images of the classes take
    turns, so that the first N are a fair subset. Mean and standard deviation are those of the training images.

    Raises:
        DataError: a folder or its images are missing, an image cannot be read, or the classes do not agree.
    """
    root, size = data_root(config), config.image_size or 32
    height, width = sides(size)
    test_folder = root / "test" if (root / "test").is_dir() else root / "val"
    if not (root / "train").is_dir() or not test_folder.is_dir():
        raise DataError(
            f"{root} (data.root) has no folders train and test (or val); expected train/<class>/*.png and "
            f"test/<class>/*.png{'; there is nothing to download' if config.download else ''}"
        )
    classes = _classes(root / "train")
    if (found := _classes(test_folder)) != classes:
        odd = sorted(set(classes) ^ set(found))[0]
        raise DataError(f"{root / 'train'} and {test_folder} hold different classes: {odd!r} is in one of them only")
    train = _read(root / "train", classes, size, config.train_limit)
    mean, std = _moments(train.images)
    return Dataset(
        name="folder",
        train=train,
        test=_read(test_folder, classes, size, config.test_limit),
        classes=classes,
        mean=mean,
        std=std,
        augment=AugmentConfig(crop_padding=min(height, width) // 8, padding_mode="reflect", flip=0.5),
        source=f"images of the folder {root.name}, resized to {height} x {width}",
    )


def read_images(path: Path, size: ImageSize, channels: int) -> tuple[list[str], Tensor]:
    """Images of a folder and its sub-folders, for prediction.

    Args:
        path: the folder.
        size: side that the images get, or height and width [pixels]; see :func:`locallearn.data.images.fit`.
        channels: 3 for RGB, 1 for grey.

    Returns:
        The files' names relative to ``path``, sorted, and uint8 [N, channels, H, W].

    Raises:
        DataError: there are no images, or one cannot be read.
    """
    files = find_images(path)
    return [file.relative_to(path).as_posix() for file in files], decode_images(files, size, channels)


def find_images(path: Path) -> list[Path]:
    """The images of a folder and its sub-folders, sorted; hidden files are left out.

    Raises:
        DataError: there are none.
    """
    if not path.exists():
        raise DataError(f"{path} is not there; expected a folder of images")
    files = _images_in(path)
    if not files:
        raise DataError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(sub.name for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith(".")))


def _images_in(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in files if not file.name.startswith(".") and file.is_file())


def _read(folder: Path, classes: Sequence[str], size: ImageSize, limit: int) -> ImageSet:
    import torch

    turns: list[tuple[int, int, Path]] = []
    for label, name in enumerate(classes):
        files = _images_in(folder / name)
        if not files:
            raise DataError(f"{folder / name} holds no images ({', '.join(sorted(SUFFIXES))})")
        turns += [(turn, label, file) for turn, file in enumerate(files)]
    if not turns:
        raise DataError(f"{folder} holds no folders of classes; expected {folder.name}/<class>/*.png")
    turns = sorted(turns)[: limit or None]
    images = decode_images([file for _, _, file in turns], size, 3)
    return ImageSet(images, torch.tensor([label for _, label, _ in turns]))


def decode_images(files: Sequence[Path], size: ImageSize, channels: int) -> Tensor:
    """Images as uint8 [N, channels, H, W]; see :func:`read_images`.

    Raises:
        DataError: one cannot be read.
    """
    import torch

    images = np.empty((len(files), channels, *sides(size)), np.uint8)

    def read(i: int) -> None:
        images[i] = fit(decode(files[i], files[i], channels), size).transpose(2, 0, 1)

    # Photographs are large enough for threads to help: their decoder works without the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(read, range(len(files))):
            pass
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
