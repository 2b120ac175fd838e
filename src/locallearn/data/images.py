"""One image: from a file to the pixels that a network is given, the same in training, prediction and exports."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from locallearn.config import ImageSize, sides
from locallearn.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
"""What is decoded, as Pillow names it; a file of any other format is refused, whatever it is called."""

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
"""Endings of the names of image files."""


def decode(source: Path | bytes, where: object, channels: int = 3) -> Image.Image:
    """Decode a file, upright as its EXIF data have it.

    Args:
        source: the file, or what is in it.
        where: what messages call it.
        channels: 3 for RGB, 1 for grey.

    Raises:
        DataError: it is damaged, of a format that is not in ``FORMATS``, or has not 8 bits a channel.
    """
    from PIL import Image, ImageOps

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if isinstance(file, Path):
            check_image_file(file)
        with Image.open(file, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):  # they would be cut off at 255
                raise ValueError(f"pixels of mode {image.mode}, expected 8 bits a channel")
            return ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
    except Exception as error:  # a damaged image can raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where} is not a readable image: {reason}") from None


def check_image_file(path: Path) -> None:
    """Refuse what is under the name of an image and no file: a link that leads nowhere, a pipe, a device.

    Raises:
        OSError: it is no file.
    """
    if not path.is_file():
        raise OSError("it is no file" if path.exists() else "the link leads nowhere")


def fit(image: Image.Image, size: ImageSize) -> np.ndarray:
    """The image as uint8 [H, W, C] of a size, whatever its own.

    It is resized (bilinear, over all pixels that a new one covers) until it just covers the size, and what stands out
    on the longer side is cut off, half at each end. An image of this size stays as it is.
    """
    from PIL import Image, ImageOps

    height, width = sides(size)
    return pixels(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))


def pixels(image: Image.Image) -> np.ndarray:
    """An RGB or grey image as uint8 [H, W, C]."""
    values = np.asarray(image)
    return values if values.ndim == 3 else values[:, :, None]


FITTING = {"resize": "cover", "interpolation": "bilinear", "antialias": True, "crop": "centre", "scale": 1 / 255}
"""What ``fit`` does, and the network's factor on pixels, as exports tell it."""


def cut(image: Image.Image, box: Sequence[int], size: ImageSize) -> np.ndarray:
    """A part of the image (top, left, height, width) as uint8 [H, W, C] of a size, resized as ``fit`` does."""
    from PIL import Image

    (top, left, tall, wide), (height, width) = box, sides(size)
    part = (left, top, left + wide, top + tall)
    return pixels(image.resize((width, height), Image.Resampling.BILINEAR, box=part))
