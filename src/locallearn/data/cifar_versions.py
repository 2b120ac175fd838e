"""The official versions of CIFAR-10 and CIFAR-100: Python or binary, as an archive or unpacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from locallearn.data.archives import read_batch, read_folder, read_tar
from locallearn.data.pickles import load_pickle
from locallearn.errors import DataError

Part = tuple[np.ndarray, np.ndarray]  # images uint8 [n, 3, 32, 32], labels int64 [n]
Parts = tuple[list[Part], list[Part], tuple[str, ...], str]  # train, test, class names, source


def _binary(data: bytes, where: str, label_bytes: int) -> Part:
    width = label_bytes + 3072
    if len(data) % width:
        raise DataError(f"{where}: expected records of {width} bytes, found {len(data)} bytes in all")
    rows = np.frombuffer(data, np.uint8).reshape(-1, width)
    # CIFAR-100 has the coarse label first; the fine one is the last before the pixels.
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].astype(np.int64)


def _pickled_names(data: bytes, where: str, key: str) -> tuple[str, ...]:
    meta = load_pickle(data, where)
    names = meta.get(key) if isinstance(meta, dict) else None
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise DataError(f"{where}: expected a dictionary with a list {key!r} of names")
    return tuple(names)


def _text_names(data: bytes, where: str) -> tuple[str, ...]:
    del where
    return tuple(data.decode("latin1").split())


@dataclass(frozen=True)
class Version:
    """One official version: its archive, the folder in it, the files in that and how to read them."""

    title: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    read: Callable[[bytes, str], Part]
    read_names: Callable[[bytes, str], tuple[str, ...]]

    def is_in(self, folder: Path) -> bool:
        """Whether the unpacked files are in a folder, under whatever name."""
        named = folder.name == self.folder or (folder / self.names).is_file()
        return named and (folder / self.train[0]).is_file()

    def parse(self, path: Path, title: str) -> Parts:
        """Read an archive or a folder."""
        files = (*self.train, self.test, self.names)
        members = (read_tar if path.is_file() else read_folder)(path, self.folder, files)
        parts = {name: self.read(members.pop(name), f"{path}: {name}") for name in files[:-1]}
        names = self.read_names(members[self.names], f"{path}: {self.names}")
        return [parts[name] for name in self.train], [parts[self.test]], names, f"{title} ({self.title})"


@dataclass(frozen=True)
class Cifar:
    """One of the two sets."""

    name: str
    title: str
    classes: int
    versions: tuple[Version, ...]


CIFAR10 = Cifar(
    "cifar10",
    "CIFAR-10",
    10,
    (
        Version(
            title="official Python archive",
            archive="cifar-10-python.tar.gz",
            folder="cifar-10-batches-py",
            train=tuple(f"data_batch_{i}" for i in range(1, 6)),
            test="test_batch",
            names="batches.meta",
            read=partial(read_batch, label_key="labels"),
            read_names=partial(_pickled_names, key="label_names"),
        ),
        Version(
            title="official binary archive",
            archive="cifar-10-binary.tar.gz",
            folder="cifar-10-batches-bin",
            train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            test="test_batch.bin",
            names="batches.meta.txt",
            read=partial(_binary, label_bytes=1),
            read_names=_text_names,
        ),
    ),
)

CIFAR100 = Cifar(
    "cifar100",
    "CIFAR-100",
    100,
    (
        Version(
            title="official Python archive",
            archive="cifar-100-python.tar.gz",
            folder="cifar-100-python",
            train=("train",),
            test="test",
            names="meta",
            read=partial(read_batch, label_key="fine_labels"),
            read_names=partial(_pickled_names, key="fine_label_names"),
        ),
        Version(
            title="official binary archive",
            archive="cifar-100-binary.tar.gz",
            folder="cifar-100-binary",
            train=("train.bin",),
            test="test.bin",
            names="fine_label_names.txt",
            read=partial(_binary, label_bytes=2),
            read_names=_text_names,
        ),
    ),
)
