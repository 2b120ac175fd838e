"""The digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels, for a first try without any files."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np

from locallearn.config import AugmentConfig, DataConfig
from locallearn.data.datasets import Dataset, datasets, image_set
from locallearn.errors import DataError

_TEST_IMAGES_OF_A_CLASS = 36


@datasets.register("digits")
def read_digits(config: DataConfig) -> Dataset:
    """1,437 training and 360 test images (36 of every class), the same split for every seed.

    Pixels 0..16 become 0..240.
    """
    del config  # there is nothing to find or to choose
    table = _table()
    images = (table[:, :64].reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    labels = table[:, 64]
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        # Spread evenly over the file, and without a random generator, whose draws may change with its version.
        is_test[members[np.linspace(0, len(members) - 1, _TEST_IMAGES_OF_A_CLASS).round().astype(int)]] = True
    return Dataset(
        name="digits",
        train=image_set([(images[~is_test], labels[~is_test])], 10, "digits"),
        test=image_set([(images[is_test], labels[is_test])], 10, "digits"),
        classes=tuple("0123456789"),
        mean=(0.28723674,),
        std=(0.35386992,),
        augment=AugmentConfig(crop_padding=1, padding_mode="constant", flip=0.0),
        source="digits of scikit-learn (8 x 8, grey)",
    )


def _table() -> np.ndarray:
    """A line an image, 64 pixels and the label: scikit-learn's own file, for importing it takes a second."""
    library = importlib.util.find_spec("sklearn")
    if library is None or not library.submodule_search_locations:
        raise DataError("digits: the package scikit-learn, which has them, is not installed")
    return _read(Path(library.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz")


@functools.cache
def _read(file: Path) -> np.ndarray:
    """Once a process: a text of 117,000 numbers takes longer than some steps of training."""
    table = np.loadtxt(file, dtype=np.int64, delimiter=",")
    table.flags.writeable = False
    return table
