"""CIFAR-10 and CIFAR-100 from the official archives, their unpacked folders, or Parquet files.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from locallearn.config import AugmentConfig, DataConfig
from locallearn.data import parquet
from locallearn.data.archives import CHECKSUMS
from locallearn.data.cifar_versions import CIFAR10, CIFAR100, Cifar, Parts
from locallearn.data.datasets import Dataset, data_root, datasets, folders, image_set, own_images
from locallearn.data.download import download
from locallearn.errors import DataError

PAGE = "https://www.cs.toronto.edu/~kriz/"

_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@datasets.register("cifar10")
def read_cifar10(config: DataConfig) -> Dataset:
    """CIFAR-10: 50,000 and 10,000 RGB images of 32 x 32 pixels in 10 classes."""
    return _read(CIFAR10, config)


@datasets.register("cifar100")
def read_cifar100(config: DataConfig) -> Dataset:
    """CIFAR-100 with its fine labels: 50,000 and 10,000 RGB images of 32 x 32 pixels in 100 classes."""
    return _read(CIFAR100, config)


def _read(cifar: Cifar, config: DataConfig) -> Dataset:
    root = data_root(config)
    places = folders(root)
    odd: list[parquet.ColumnsError] = []
    parts = _official(cifar, places) or _parquet(cifar, places, config, odd)
    if parts is None:
        version = cifar.versions[0]
        if not config.download:
            near = f"; {odd[0]}" if odd else own_images(root)
            raise DataError(
                f"{cifar.title} is not in {root} (data.root); add --data.download, or put {version.archive} "
                f"from {PAGE}cifar.html there{near}"
            )
        archive = root / version.archive
        download(PAGE + version.archive, archive, CHECKSUMS[version.archive])
        parts = version.parse(archive, cifar.title)
    train, test, names, source = parts
    if len(names) != cifar.classes:
        raise DataError(f"{cifar.title} in {root}: expected the names of {cifar.classes} classes, found {len(names)}")
    return Dataset(
        name=cifar.name,
        train=image_set(train, cifar.classes, f"{source}, training images"),
        test=image_set(test, cifar.classes, f"{source}, test images"),
        classes=names,
        mean=_MEAN,
        std=_STD,
        augment=AugmentConfig(crop_padding=4, padding_mode="reflect", flip=0.5),
        source=source,
    )


def _official(cifar: Cifar, places: Sequence[Path]) -> Parts | None:
    for version in cifar.versions:
        for place in places:
            if version.is_in(place):
                return version.parse(place, cifar.title)
        for place in places:
            if (place / version.archive).is_file():
                return version.parse(place / version.archive, cifar.title)
    return None


def _parquet(
    cifar: Cifar, places: Sequence[Path], config: DataConfig, odd: list[parquet.ColumnsError]
) -> Parts | None:
    """Parquet files of the set; ``odd`` takes why others that hold images are not."""
    for place in places:
        first = min(place.glob("train*.parquet"), default=None)
        try:
            layout = None if first is None else parquet.layout_of(first)
        except parquet.ColumnsError as error:
            odd.append(error)
            continue
        if layout is None or not _fits(cifar, layout):
            continue
        train, encoding = parquet.read_images(parquet.shards(place, "train"), layout, 32, config.train_limit)
        test, _ = parquet.read_images(parquet.shards(place, "test"), layout, 32, config.test_limit)
        default = _CIFAR10_NAMES if cifar.classes == 10 else tuple(str(i) for i in range(cifar.classes))
        return train, test, layout.names or default, f"{cifar.title} (Parquet, {encoding} images)"
    return None


def _fits(cifar: Cifar, layout: parquet.Columns) -> bool:
    """Whether Parquet files hold this one of the two sets, and not another one with as many classes."""
    if cifar.classes == 10:
        right = layout.classes <= 10 if layout.names is None else set(layout.names) == set(_CIFAR10_NAMES)
        return layout.label == "label" and right
    if layout.names is None:
        return layout.label == "fine_label" or 10 < layout.classes <= 100
    return layout.classes == 100
