"""Writing of packed sets (``locallearn.data.packed``), which goes on where it was interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from locallearn.arguments import checked
from locallearn.data.images import decode
from locallearn.data.packed import ENTRY, INDEX, Shard, checksum, shard_file
from locallearn.data.sources import Encoded, Source, open_source
from locallearn.errors import DataError, UsageError
from locallearn.files import make_folder, replacing, write_atomically

if TYPE_CHECKING:
    from PIL import Image

PLAN = "packing.json"
"""Says what a folder is a part of, until it is whole."""
JPEG_QUALITY = 95
"""Of images that are made smaller."""
_AT_ONCE = 256
"""Images in memory."""

OnImages = Callable[[int, int], None]
"""Is told how many images are done, of how many."""


@dataclass(frozen=True)
class _Part:
    """A shard, the images of the source that it took, and its sums of each image's means and mean squares.

    ``taken`` counts images that were left out too.
    """

    shard: Shard
    taken: int
    sums: tuple[float, ...]


class _Checked(NamedTuple):
    data: bytes
    label: int
    height: int
    width: int
    moments: np.ndarray


@checked
def pack(
    source: str | Path,
    target: str | Path,
    shorter_side: int | None = None,
    skip_damaged: bool = False,
    shard_bytes: int = 1 << 30,
    on_images: OnImages | None = None,
) -> dict[str, Any]:
    """Make a packed set from folders of images, Parquet files or tar archives.

    Every image is decoded once, so that a damaged one is found now; at most 256 are in memory. Files are written
    under temporary names. A call that was interrupted goes on with the last file that was not finished, and writes
    what a call without interruption would have written.

    Args:
        source: a folder with ``train/<class>/*.jpg`` and ``test/<class>/*.jpg`` (or ``val``), with ``train*.parquet``
            and ``test*.parquet`` as the Hugging Face hub has them, or with ``train*.tar`` and ``test*.tar``.
        target: the folder of the packed set.
        shorter_side: make images whose shorter side is longer that small, as JPEG of quality 95 [pixels]; by default
            files stay as they are.
        skip_damaged: leave images out that cannot be decoded, instead of refusing them.
        shard_bytes: size from which a new file is begun [bytes].
        on_images: is told how it goes.

    Returns:
        ``target``, ``source``, ``classes``, and for ``train`` and ``test`` the ``images``, those ``left_out`` and
        ``bytes``.

    Raises:
        DataError: the source is in no known layout, or an image is damaged.
        UsageError: the target holds something else, or cannot be written.
    """
    found, target = open_source(Path(source)), Path(target)
    for split, count in found.counts.items():
        if not count:
            raise DataError(f"{source} has no images to {split} with")
    plan = {"identity": found.identity, "shorter_side": shorter_side, "skip_damaged": skip_damaged}
    _claim(target, {**plan, "shard_bytes": shard_bytes})
    told, total = 0, sum(found.counts.values())
    parts: dict[str, list[_Part]] = {}
    for split in found.splits:
        parts[split] = []
        for part in _write_split(found, split, target, shorter_side, skip_damaged, shard_bytes):
            parts[split].append(part)
            if on_images is not None:
                on_images(told + sum(each.taken for each in parts[split]), total)
        if not sum(part.shard.images for part in parts[split]):
            raise DataError(f"{source} has no images to {split} with that can be decoded")
        told += found.counts[split]
    _finish(target, found, parts)
    sizes = {
        split: {
            "images": sum(part.shard.images for part in each),
            "left_out": found.counts[split] - sum(part.shard.images for part in each),
            "bytes": sum(part.shard.bytes for part in each),
        }
        for split, each in parts.items()
    }
    return {"target": str(target), "source": found.text, "classes": len(found.classes), **sizes}


def _claim(target: Path, plan: dict[str, Any]) -> None:
    """Make the target, or go on with one of the same plan."""
    if (target / INDEX).exists():
        raise UsageError(f"{target} is a packed set already; name another folder, or remove it")
    if (target / PLAN).is_file():
        if (target / PLAN).read_text() != json.dumps(plan):
            raise UsageError(f"{target} was begun from another source or with other options; remove it")
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there and not empty; name another folder")
    make_folder(target)
    write_atomically(target / PLAN, json.dumps(plan))


def _write_split(
    source: Source, split: str, target: Path, shorter_side: int | None, skip_damaged: bool, shard_bytes: int
) -> Iterator[_Part]:
    taken, number = 0, 0
    while (part := _finished(target, split, number)) is not None:
        yield part
        taken, number = taken + part.taken, number + 1
    images = _checked(source.splits[split](taken), shorter_side, skip_damaged)
    while taken < source.counts[split]:
        part = _write_shard(images, partial(shard_file, target, split, number), shard_bytes)
        if part.taken == 0:
            raise DataError(f"{split}: the source has {taken:,} images, expected {source.counts[split]:,}")
        yield part
        taken, number = taken + part.taken, number + 1


def _finished(target: Path, split: str, number: int) -> _Part | None:
    """What an earlier call said of a file that it finished; this is written last."""
    try:
        values = json.loads(shard_file(target, split, number, "part").read_bytes())
        return _Part(Shard(**values["shard"]), values["taken"], tuple(values["sums"]))
    except FileNotFoundError:
        return None


def _write_shard(images: Iterator[_Checked | None], named: Callable[[str], Path], shard_bytes: int) -> _Part:
    rows: list[tuple[int, ...]] = []
    sums, taken, end = np.zeros(6), 0, 0
    with replacing(named("images")) as temporary, temporary.open("wb") as file:
        for image in images:
            taken += 1
            if image is not None:
                file.write(image.data)
                rows.append((end, len(image.data), zlib.crc32(image.data), image.label, image.height, image.width))
                sums += image.moments
                end += len(image.data)
            if end >= shard_bytes:
                break
    entries = np.array(rows, ENTRY).tobytes()
    with replacing(named("entries")) as temporary:
        temporary.write_bytes(entries)
    part = _Part(Shard(len(rows), end, hashlib.sha256(entries).hexdigest()), taken, tuple(sums.tolist()))
    write_atomically(named("part"), json.dumps(dataclasses.asdict(part)))
    return part


def _finish(target: Path, source: Source, parts: dict[str, list[_Part]]) -> None:
    """Write the index, which makes the folder a packed set, and remove what only an interrupted call needs."""
    sums = np.sum([part.sums for part in parts["train"]], 0) / sum(part.shard.images for part in parts["train"])
    mean, squares = sums[:3], sums[3:]
    # a channel that never changes cannot be scaled
    std = [math.sqrt(max(square - m * m, 0.0)) or 1.0 for m, square in zip(mean, squares, strict=True)]
    values: dict[str, Any] = {
        "format": "locallearn images 1",
        "source": source.text,
        "classes": list(source.classes),
        "mean": mean.tolist(),
        "std": std,
    }
    for split, each in parts.items():
        values[split] = [dataclasses.asdict(part.shard) for part in each if part.shard.images]
    write_atomically(target / INDEX, json.dumps({**values, "sha256": checksum(values)}, indent=1))
    for split, each in parts.items():
        for number in range(len(each)):
            shard_file(target, split, number, "part").unlink(missing_ok=True)
    (target / PLAN).unlink(missing_ok=True)


def _checked(images: Iterator[Encoded], shorter_side: int | None, skip_damaged: bool) -> Iterator[_Checked | None]:
    """Every image, decoded once to see that it can be; None for one that is left out."""

    def check(image: Encoded) -> _Checked | None:
        try:
            return _check(image, shorter_side)
        except DataError:
            if skip_damaged:
                return None
            raise

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # decoders work without the interpreter's lock
        while some := list(islice(images, _AT_ONCE)):
            yield from list(threads.map(check, some))


def _check(image: Encoded, shorter_side: int | None) -> _Checked:
    try:
        data = image.read()
    except OSError as error:
        raise DataError(f"{image.where} cannot be read: {error.strerror}") from None
    decoded = decode(data, image.where)
    if shorter_side is not None and min(decoded.size) > shorter_side:
        decoded = _smaller(decoded, shorter_side)
        buffer = io.BytesIO()
        decoded.save(buffer, "JPEG", quality=JPEG_QUALITY)
        data = buffer.getvalue()
        decoded = decode(data, image.where)
    width, height = decoded.size
    return _Checked(data, image.label, height, width, _moments(decoded.histogram()))


def _smaller(image: Image.Image, shorter_side: int) -> Image.Image:
    from PIL import Image

    scale = shorter_side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)


def _moments(histogram: Sequence[int]) -> np.ndarray:
    """Mean and mean square of each of three channels, of pixels in [0, 1]."""
    counts_CV = np.array(histogram, np.float64).reshape(3, 256)
    values_V = np.arange(256) / 255
    return np.concatenate([counts_CV @ values_V, counts_CV @ values_V**2]) / counts_CV[0].sum()
