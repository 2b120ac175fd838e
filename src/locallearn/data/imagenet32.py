"""ImageNet downsampled to 32 x 32 pixels: Chrabaszcz et al., https://arxiv.org/abs/1707.08819."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from locallearn.config import AugmentConfig, DataConfig
from locallearn.data.archives import read_batch, read_folder
from locallearn.data.datasets import Dataset, data_root, datasets, folders, image_set
from locallearn.errors import DataError

_TRAIN = tuple(f"train_data_batch_{i}" for i in range(1, 11))
_TEST = "val_data"
_CLASSES = 1000


@datasets.register("imagenet32")
def read_imagenet32(config: DataConfig) -> Dataset:
    """Downsampled ImageNet: 1,281,167 training and 50,000 validation RGB images in 1,000 classes.

    The classes are named by their number in the files, from 1. The pages that publish the files give no checksum.
    """
    root = data_root(config)
    train, test = _folder_with(_TRAIN[0], root), _folder_with(_TEST, root)
    if train is None or test is None:
        missing = _TRAIN[0] if train is None else _TEST
        login = "cannot be downloaded without a login; " if config.download else ""
        raise DataError(
            f"ImageNet32 {login}{missing} is not in {root} (data.root): get Imagenet32_train.zip and "
            "Imagenet32_val.zip from https://image-net.org/download-images and unpack them there"
        )
    return Dataset(
        name="imagenet32",
        train=image_set([_batch(train, name) for name in _TRAIN], _CLASSES, "ImageNet32, training images"),
        test=image_set([_batch(test, _TEST)], _CLASSES, "ImageNet32, validation images"),
        classes=tuple(str(i) for i in range(1, _CLASSES + 1)),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augment=AugmentConfig(crop_padding=4, padding_mode="constant", flip=0.5),
        source="ImageNet32 (official batches)",
    )


def _folder_with(name: str, root: Path) -> Path | None:
    return next((folder for folder in folders(root) if (folder / name).is_file()), None)


def _batch(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    data = read_folder(folder, "imagenet32", [name])[name]
    images, labels = read_batch(data, str(folder / name), "labels")
    return images, labels - 1
