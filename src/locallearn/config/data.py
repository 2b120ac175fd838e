"""Which images a run is trained on, and how they are changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from locallearn.arguments import checked_fields
from locallearn.config.checks import (
    MOST_PIXELS,
    STRICT,
    check,
    choice,
    count,
    fraction,
    is_int,
    is_real,
    non_negative,
    probability,
)
from locallearn.config.components import Defaults, of, settle_options

ImageSize = int | tuple[int, int]
"""Side of square images, or height and width [pixels]."""


def sides(size: ImageSize) -> tuple[int, int]:
    """Height and width [pixels]."""
    return (size, size) if isinstance(size, int) else size


def is_size(value: Any) -> bool:
    """Whether it is a whole number, or two."""
    return is_int(value) or (isinstance(value, tuple) and len(value) == 2 and all(map(is_int, value)))


def size_of(height: int, width: int) -> ImageSize:
    """The size of these sides [pixels]: one number where they are equal."""
    return height if height == width else (height, width)


@checked_fields
@dataclass(frozen=True)
class DataConfig:
    """Which images to train on and where they are."""

    __pydantic_config__ = STRICT

    name: str = "digits"
    """Data set: digits, cifar10, cifar100, imagenet32, folder or packed."""
    root: str | None = None
    """Folder that holds the data; by default $LOCALLEARN_DATA, then ~/.cache/locallearn/data."""
    download: bool = False
    """Fetch the data set if it is not there (resumable, checked by checksum)."""
    train_limit: int = 0
    """Use only the first N training images [images]; 0 means all."""
    test_limit: int = 0
    """Use only the first N test images [images]; 0 means all."""
    validation: float = 0.0
    """Share of the training images, the same of every class, that is not trained on and chooses the best checkpoint
    [fraction]; recipes hold out a tenth. 0 holds out none: the test images then choose it, and its test accuracy is
    optimistic."""
    image_size: ImageSize | None = None
    """Side that images of a folder or a packed set are resized to, or height and width where they are not square
    [pixels]; by default 32, of a packed set 224. Other sets have their own size."""
    memory_gib: float | None = None
    """Packed images that take at most this much are decoded once and held on the device, the others read again and
    again [GiB]; by default an eighth of its memory. The batches are the same."""
    workers: int | None = None
    """Processes that read packed images which are not held; by default as many as there are cores."""
    mean: tuple[float, ...] | None = None
    """Mean of every channel of pixels in [0, 1], which normalises images; by default the data set's own."""
    std: tuple[float, ...] | None = None
    """Standard deviation of every channel of pixels in [0, 1]; by default the data set's own."""
    options: Any = field(default=Defaults(), metadata=of("data.name", by="name"))
    """Settings of the data set's own, where it is registered with such."""

    def __post_init__(self) -> None:
        settle_options(self, "data")
        count("data.train_limit", self.train_limit)
        count("data.test_limit", self.test_limit)
        fraction("data.validation", self.validation)
        non_negative("data.memory_gib", self.memory_gib)
        count("data.workers", self.workers)
        check(
            "data.image_size",
            self.image_size,
            lambda v: is_size(v) and min(sides(v)) >= 4,
            "a whole number of at least 4, or two (height and width)",
        )
        most = f"sides of at most {MOST_PIXELS:,}"
        check("data.image_size", self.image_size, lambda v: max(sides(v)) <= MOST_PIXELS, most)
        if self.image_size is not None:  # a square is one number in TOML and in digests, however it was given
            object.__setattr__(self, "image_size", size_of(*sides(self.image_size)))
        check("data.mean", self.mean, lambda v: all(map(is_real, v)), "finite numbers")
        check("data.std", self.std, lambda v: all(is_real(x) and x > 0 for x in v), "finite numbers above 0")


@checked_fields
@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images, drawn per image; ``None`` means the data set's own custom."""

    __pydantic_config__ = STRICT

    crop_padding: int | None = None
    """Pad each side by this much, then crop at a random place [pixels]; 0 turns it off."""
    padding_mode: Literal["reflect", "constant"] | None = None
    """What the padding holds: the mirrored image, or zeros."""
    resized_crop: tuple[float, float] | None = None
    """Cut out a part of the image and resize it to the whole; least and largest area of the part [fraction of the
    image], sides 3:4 to 4:3. By default no such crop; with it, no padding."""
    flip: float | None = None
    """Probability of a horizontal flip."""
    jitter: float = 0.0
    """Probability of changing an image's colours."""
    brightness: float = 0.4
    """Largest relative change of brightness, where colours change."""
    contrast: float = 0.4
    """Largest relative change of contrast, where colours change."""
    saturation: float = 0.4
    """Largest relative change of saturation, where colours change."""
    hue: float = 0.1
    """Largest change of hue, where colours change [fraction of the colour circle]."""
    grey: float = 0.0
    """Probability of turning an image grey."""
    own: str | None = None
    """An augmentation of your own (ll.augmentations), which comes after the others."""
    own_options: Any = field(default=Defaults(), metadata=of("augment.own", by="own"))
    """Settings of that augmentation, where it is registered with such."""

    def __post_init__(self) -> None:
        settle_options(self, "augment")
        count("augment.crop_padding", self.crop_padding)
        choice("augment.padding_mode", self.padding_mode, "reflect", "constant")
        expected = "two numbers in (0, 1], the smaller one first"
        check("augment.resized_crop", self.resized_crop, lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1, expected)
        for name in ("flip", "jitter", "grey"):
            probability(f"augment.{name}", getattr(self, name))
        for name in ("brightness", "contrast", "saturation"):
            probability(f"augment.{name}", getattr(self, name))
        check("augment.hue", self.hue, lambda v: is_real(v) and 0 <= v <= 0.5, "a number in [0, 0.5]")
