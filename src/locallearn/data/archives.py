"""Official archives: checksums, tar members as streams, and the batches in them."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from locallearn.data.pickles import load_pickle
from locallearn.errors import DataError

# From the data sets' own page, and of the unpacked members as torchvision lists them.
CHECKSUMS: dict[str, str] = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}


def check_md5(path: Path, expected: str) -> None:
    """Compare a file with its MD5 checksum.

    Raises:
        DataError: they differ.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DataError(f"{path} is damaged: its MD5 is {found}, expected {expected}")


def read_folder(folder: Path, official: str, names: Iterable[str]) -> dict[str, bytes]:
    """Read files of an unpacked archive, and check those whose checksum is known.

    Args:
        folder: where the files are.
        official: name of the folder in the archive, which ``CHECKSUMS`` knows.
        names: files to read.

    Raises:
        DataError: a file is missing or damaged.
    """
    members = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; unpack the archive again")
        if f"{official}/{name}" in CHECKSUMS:
            check_md5(path, CHECKSUMS[f"{official}/{name}"])
        members[name] = path.read_bytes()
    return members


def read_tar(path: Path, official: str, names: Iterable[str]) -> dict[str, bytes]:
    """Check an archive (.tar.gz) and read files of it as a stream; nothing is written to disk.

    Args:
        path: the archive, under its official name.
        official: the folder in it that holds the files.
        names: files to read.

    Raises:
        DataError: the archive is damaged or lacks a file.
    """
    check_md5(path, CHECKSUMS[path.name])
    wanted = {f"{official}/{name}": name for name in names}
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                stream = archive.extractfile(member) if name is not None and member.isfile() else None
                if name is not None and stream is not None:
                    members[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a readable archive: {error}") from None
    for full, name in wanted.items():
        if name not in members:
            raise DataError(f"{path} does not hold {full}")
    return members


def read_batch(data: bytes, where: str, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Read one pickled batch: a dictionary of ``data`` (uint8 [n, 3072]) and labels.

    Returns:
        Images uint8 [n, 3, 32, 32] and labels int64 [n], as they are in the file.

    Raises:
        DataError: it is something else.
    """
    batch = load_pickle(data, where)
    pixels = batch.get("data") if isinstance(batch, dict) else None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise DataError(f"{where}: expected a dictionary whose 'data' are bytes of shape [n, 3072]")
    labels = _whole_numbers(batch.get(label_key))
    if labels.shape != pixels.shape[:1]:
        raise DataError(f"{where}: expected {label_key!r} with one whole number for each of {len(pixels)} images")
    return pixels.reshape(-1, 3, 32, 32), labels


def _whole_numbers(values: Any) -> np.ndarray:
    """A list or an array of whole numbers as int64; none at all where it is something else."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    # of a list every element is looked at, for numpy would round 1.5, and unfold a list that holds itself
    if isinstance(values, list | tuple) and all(type(value) is int for value in values):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass
    return np.empty((0, 0), np.int64)
