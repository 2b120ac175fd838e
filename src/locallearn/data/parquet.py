"""Parquet files in the layout of the Hugging Face hub: a struct column of encoded images, a column of labels."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from locallearn.errors import DataError


@dataclass(frozen=True)
class Columns:
    """What the columns of a Parquet file are.

    Attributes:
        image: column of images, a struct whose ``bytes`` are an encoded image.
        label: column of labels.
        names: names of the classes, where the file tells them.
        classes: number of classes; from the largest label where the file has no names.
    """

    image: str
    label: str
    names: tuple[str, ...] | None
    classes: int


_IMAGES, _LABELS = ("img", "image"), ("fine_label", "label")
"""Names of columns, the first that is there is taken."""


class ColumnsError(DataError):
    """A Parquet file holds images, but images and labels are not in columns that are known."""


def layout_of(path: Path) -> Columns | None:
    """The columns of a Parquet file, or ``None`` where it does not hold images.

    Raises:
        ColumnsError: it does, but with no labels in a column that is known; the message tells the columns.
        DataError: it cannot be read.
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        if not any(_is_image(field.type) for field in schema):
            return None
        image = next((name for name in _IMAGES if name in schema.names), None)
        label = next((name for name in _LABELS if name in schema.names), None)
        if image is None or label is None or not _is_image(schema.field(image).type):
            raise ColumnsError(_columns(path, schema))
        if not _is_whole(schema.field(label).type):
            raise ColumnsError(_columns(path, schema))
        names = _names(schema.metadata or {}, label)
        if names is not None:
            return Columns(image, label, names, len(names))
        labels = pq.read_table(path, columns=[label])[label].drop_null().cast(pa.int64()).to_numpy()
        return Columns(image, label, None, int(labels.max(initial=0)) + 1)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from None


def _columns(path: Path, schema: Any) -> str:
    found = [f"{field.name} ({'images' if _is_image(field.type) else field.type})" for field in schema]
    some = ", ".join(found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
    expected = f"images named {' or '.join(_IMAGES)} and whole numbers named {' or '.join(_LABELS)}"
    return f"{path} has the columns {some}; expected {expected}"


def _is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and "bytes" in {kind.field(i).name for i in range(kind.num_fields)}


def _names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if known else None


def shards(folder: Path, split: str) -> list[Path]:
    """The Parquet files of one split (``train`` or ``test``) in a folder, in order.

    Raises:
        DataError: there are none, or the names say that there are more (``train-00000-of-00002.parquet``).
    """
    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise DataError(f"{folder} has no {split}*.parquet")
    for file in files:
        count = re.search(r"-of-(\d+)\.parquet$", file.name)
        if count and int(count[1]) != len(files):
            raise DataError(f"{file} is one of {int(count[1])} files, but {len(files)} of them are in its folder")
    return files


def read_images(
    files: Sequence[Path], layout: Columns, size: int, limit: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Decode the images of Parquet files, only the first ``limit`` where that is not 0.

    Decoding stays on one thread: the interpreter's lock makes threads slower for images this small (10,000 take
    0.5 s on one thread of a 2.6 GHz EPYC, 0.6 to 0.9 s on two).

    Returns:
        Images uint8 [n, 3, size, size] and labels int64 [n] of every file, and the images' format (``"JPEG"``).

    Raises:
        DataError: a file is damaged, or an image is not ``size`` x ``size`` pixels.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: list[tuple[np.ndarray, np.ndarray]] = []
    left, encoding = limit or sys.maxsize, ""
    for file in files:
        try:
            row = 0
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1000, columns=[layout.image, layout.label]):
                rows = batch.slice(0, left)
                images, encoding = _decode_all(rows.column(layout.image).field("bytes").to_pylist(), size, file, row)
                # A missing label becomes -1, which no set knows.
                labels = rows.column(layout.label).cast(pa.int64()).fill_null(-1).to_numpy()
                parts.append((images, labels))
                row, left = row + len(labels), left - len(labels)
                if left == 0:
                    return parts, encoding
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _damaged(file, error) from None
    return parts, encoding


def encoded(files: Sequence[Path], layout: Columns, start: int = 0) -> Iterator[tuple[str, bytes, int]]:
    """Where it is, the encoded image and the label of every row from ``start`` on, a few rows in memory at a time.

    Raises:
        DataError: a file is damaged, or a row has no image or no label.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                rows = table.metadata.num_rows
                row = 0
                for batch in table.iter_batches(64, columns=[layout.image, layout.label]) if start < rows else ():
                    images, labels = batch.column(layout.image).field("bytes"), batch.column(layout.label)
                    for i in range(max(start - row, 0), len(batch)):
                        data, label = images[i].as_py(), labels[i].as_py()
                        if data is None or label is None:
                            raise DataError(f"{file}, row {row + i} has no {'image' if data is None else 'label'}")
                        yield f"{file}, row {row + i}", data, label
                    row += len(batch)
            start = max(start - rows, 0)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _damaged(file, error) from None


def _decode_all(encoded: Sequence[bytes | None], size: int, file: Path, row: int) -> tuple[np.ndarray, str]:
    images, encoding = np.empty((len(encoded), size, size, 3), np.uint8), ""
    for i, data in enumerate(encoded):
        images[i], encoding = _decode(data, size, f"{file}, row {row + i}")
    return images.transpose(0, 3, 1, 2), encoding


def _decode(data: bytes | None, size: int, where: str) -> tuple[np.ndarray, str]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b""), formats=("JPEG", "PNG")) as image:
            found = image.size
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
            encoding = str(image.format)
    except Exception as error:  # a damaged image can raise almost anything
        raise DataError(f"{where} is not a readable JPEG or PNG image: {error}") from None
    if found != (size, size):
        raise DataError(f"{where} is {found[0]} x {found[1]} pixels, expected {size} x {size}")
    return pixels, encoding


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a readable Parquet file: {' '.join(str(error).split())}")
