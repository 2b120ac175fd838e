"""Packed images: encoded files one behind the other in a few large ones, and an index that finds each of them.

A set is a folder. ``index.json`` describes it and holds the checksums of the other files. ``train-00000.images`` and
so on are the encoded images; ``train-00000.entries`` beside it has 28 bytes for each (``ENTRY``), the checksum of
the image among them, which is looked at whenever the image is read. ``locallearn pack`` writes such a folder
(``locallearn.data.packing``). Nothing in it can name another file or run.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from locallearn.config import AugmentConfig, DataConfig, ImageSize, sides
from locallearn.data.datasets import Dataset, ImageSet, data_root, datasets
from locallearn.data.images import cut, decode, fit
from locallearn.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "index.json"
_AT_ONCE = 64
ENTRY = np.dtype(
    [("start", "<u8"), ("bytes", "<u4"), ("crc32", "<u4"), ("label", "<u4"), ("height", "<u4"), ("width", "<u4")]
)
"""One image: where it begins in its file, how long it is, its CRC-32, its label, height and width [pixels]."""


@dataclass(frozen=True)
class Shard:
    """Two files of a split: how many images are in them, bytes of ``.images``, SHA-256 of ``.entries``."""

    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What ``index.json`` says: names of classes, moments of the training pixels, and the files of both splits."""

    format: Literal["locallearn images 1"]
    source: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]


def read_index(folder: Path) -> Index:
    """Read ``index.json``.

    Raises:
        DataError: it is missing, or not what ``locallearn.data.packing`` wrote.
    """
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{folder} (data.root) is no packed set: {INDEX} is missing; make one with locallearn pack")
    try:
        values = json.loads(path.read_bytes())
        written = values.pop("sha256")
        if written != checksum(values):
            raise ValueError("its checksum differs")
        return TypeAdapter(Index).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged: {place}: {first['msg']}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from None


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of what is in ``index.json``, but for the checksum itself."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class PackedImages:
    """One split of a packed set, of which any image is read by its position.

    It can be sent to another process, which then opens the files itself.

    Args:
        folder: the packed set.
        split: ``"train"`` or ``"test"``.
        index: of the folder.
        size: what images are fitted to, the side or height and width [pixels].

    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, split: str, index: Index, size: ImageSize) -> None:
        import torch

        shards = index.train if split == "train" else index.test
        self.folder, self.split, self.size = folder, split, size
        parts = [_entries(folder, split, i, shard, len(index.classes)) for i, shard in enumerate(shards)]
        self._shards = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.entries: np.ndarray = np.concatenate(parts) if parts else np.empty(0, ENTRY)
        self.labels = torch.from_numpy(self.entries["label"].astype(np.int64))
        self._files: dict[int, mmap.mmap] = {}
        self._decoded: ImageSet | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_files": {}, "_decoded": None}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image once it is fitted."""
        return (3, *sides(self.size))

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every packed image, int64 [N, 2] [pixels]."""
        return np.stack([self.entries["height"], self.entries["width"]], 1).astype(np.int64)

    def first(self, count: int) -> PackedImages:
        """The first ``count`` images."""
        return self._part(slice(count))

    def at(self, positions: Tensor) -> PackedImages:
        """The images at these positions, int64 [n]."""
        return self._part(positions.numpy())

    def _part(self, chosen: slice | np.ndarray) -> PackedImages:
        part = PackedImages.__new__(PackedImages)
        kept = {"entries": self.entries[chosen], "labels": self.labels[chosen], "_shards": self._shards[chosen]}
        part.__dict__ = self.__getstate__() | kept
        return part

    def encoded(self, position: int) -> bytes:
        """The file of one image.

        Raises:
            DataError: it is damaged.
        """
        shard = int(self._shards[position])
        path = shard_file(self.folder, self.split, shard, "images")
        if shard not in self._files:
            with path.open("rb") as file:
                self._files[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, length, crc32, *_ = self.entries[position].tolist()
        data = self._files[shard][start : start + length]
        if zlib.crc32(data) != crc32:
            raise DataError(f"{path} is damaged: the checksum of image {position} differs; pack the set again")
        return data

    def read(self, positions: Sequence[int], boxes: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
        """Decode images.

        Args:
            positions: which, B of them.
            boxes: parts that are cut out and resized, int64 [B, 4] for every view (top, left, height and width in
                pixels of the packed image); without any, whole images are fitted.

        Returns:
            uint8 [B, H, W, 3] for every view.

        Raises:
            DataError: one is damaged.
        """
        views = [np.empty((len(positions), *sides(self.size), 3), np.uint8) for _ in boxes or (None,)]
        for i, position in enumerate(positions):
            image = decode(self.encoded(position), f"image {position} of {self.folder} ({self.split})")
            if not boxes:
                views[0][i] = fit(image, self.size)
            for view, boxes_B4 in zip(views, boxes, strict=False):
                view[i] = cut(image, boxes_B4[i].tolist(), self.size)
        return views

    def decoded(self) -> ImageSet:
        """All images in memory, fitted; decoded once."""
        import torch

        if self._decoded is None:
            values = np.empty((len(self.entries), *sides(self.size), 3), np.uint8)

            def read(start: int) -> None:
                chosen = range(start, min(start + _AT_ONCE, len(values)))
                (values[chosen.start : chosen.stop],) = self.read(chosen)

            with ThreadPoolExecutor(os.cpu_count()) as threads:  # the decoder works without the interpreter's lock
                for _ in threads.map(read, range(0, len(values), _AT_ONCE)):
                    pass
            self._decoded = ImageSet(torch.from_numpy(values).permute(0, 3, 1, 2), self.labels)
        return self._decoded


def shard_file(folder: Path, split: str, number: int, ending: str) -> Path:
    """One file of a split."""
    return folder / f"{split}-{number:05d}.{ending}"


def _entries(folder: Path, split: str, number: int, shard: Shard, classes: int) -> np.ndarray:
    """The entries of one file, none of which points outside of it."""
    path, images = shard_file(folder, split, number, "entries"), shard_file(folder, split, number, "images")
    data = path.read_bytes()
    if len(data) != shard.images * ENTRY.itemsize or hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DataError(f"{path} is damaged: its checksum differs from that in {INDEX}; pack the set again")
    entries = np.frombuffer(data, ENTRY)
    ends = np.cumsum(entries["bytes"], dtype=np.uint64)
    starts = np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
    if not shard.images or not (entries["start"] == starts).all() or ends[-1] != shard.bytes:
        raise DataError(f"{path} is damaged: images do not follow one another")
    if entries["label"].max() >= classes or min(entries["height"].min(), entries["width"].min()) < 1:
        raise DataError(f"{path} is damaged: a label or a size is out of range")
    if images.stat().st_size != shard.bytes:
        raise DataError(f"{images} is damaged: it has {images.stat().st_size:,} bytes, expected {shard.bytes:,}")
    return entries


@datasets.register("packed")
def read_packed(config: DataConfig) -> Dataset:
    """A set that ``locallearn pack`` wrote, as RGB images that are fitted to ``data.image_size``, by default 224.

    Mean and standard deviation are those of the packed training images, each of the same weight.

    Raises:
        DataError: it is missing or damaged.
    """
    root, size = data_root(config), config.image_size or 224
    index = read_index(root)
    height, width = sides(size)
    return Dataset(
        name="packed",
        train=PackedImages(root, "train", index, size),
        test=PackedImages(root, "test", index, size),
        classes=index.classes,
        mean=index.mean,
        std=index.std,
        augment=AugmentConfig(crop_padding=min(height, width) // 8, padding_mode="reflect", flip=0.5),
        source=f"{index.source}, packed, resized to {height} x {width}",
    )
