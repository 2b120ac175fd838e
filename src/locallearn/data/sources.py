"""What can be packed: folders of images, Parquet files, tar archives; each as encoded images in a fixed order."""

from __future__ import annotations

import hashlib
import itertools
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from locallearn.data import parquet
from locallearn.data.folder import class_names, images_of_classes
from locallearn.data.images import SUFFIXES, check_image_file
from locallearn.errors import DataError
from locallearn.files import readable

SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}
"""Names that a split may have in a source, the first that is there."""


class Encoded(NamedTuple):
    """One image of a source: reads its file; its label; what messages call it."""

    read: Callable[[], bytes]
    label: int
    where: str


@dataclass(frozen=True)
class Source:
    """Images to pack.

    Attributes:
        text: what they are, as one line.
        classes: names of the classes.
        splits: for ``"train"`` and ``"test"``, what gives the images from a position on, in their order.
        counts: images of each.
        identity: differs where names or sizes of the source's files do.
    """

    text: str
    classes: tuple[str, ...]
    splits: dict[str, Callable[[int], Iterator[Encoded]]]
    counts: dict[str, int]
    identity: str


def open_source(root: Path) -> Source:
    """Find out what a folder holds, and list it.

    Raises:
        DataError: it holds none of the three layouts, or something in it is damaged.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder; expected one with train and test (or val)")
    if any(root.glob("*.parquet")):
        return _parquet(root)
    if _archives(root, "train"):
        return _tar(root)
    if any((root / name).is_dir() for name in SPLITS["train"]):
        return _folder(root)
    raise DataError(
        f"{root} holds nothing to pack; expected train/<class>/*.jpg and test/<class>/*.jpg (or val), "
        "train*.parquet and test*.parquet, or train*.tar and test*.tar"
    )


def _folder(root: Path) -> Source:
    folders = {split: _first_there(root, names) for split, names in SPLITS.items()}
    classes = class_names(folders["train"], folders["test"])
    listed = {split: images_of_classes(folder, classes) for split, folder in folders.items()}
    found = {
        split: [Encoded(partial(_bytes, file), label, str(file)) for label, file in files]
        for split, files in listed.items()
    }
    names = [(str(file.relative_to(root)), _size(file)) for files in listed.values() for _, file in files]
    return _source(f"images of the folder {root.name}", classes, found, names)


def _bytes(file: Path) -> bytes:
    """What is in an image; what is no file is not opened."""
    try:
        check_image_file(file)
    except OSError as error:
        raise DataError(f"{file} is not a readable image: {error}") from None
    return file.read_bytes()


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _first_there(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(f"{root} has no folder {' or '.join(names)}")


def _source(
    text: str, classes: Sequence[str], found: dict[str, list[Encoded]], names: Sequence[tuple[str, int]]
) -> Source:
    splits: dict[str, Callable[[int], Iterator[Encoded]]] = {}
    for split, images in found.items():
        splits[split] = partial(_from, images)
    identity = hashlib.sha256(repr(names).encode()).hexdigest()
    return Source(
        readable(text),
        tuple(map(readable, classes)),
        splits,
        {split: len(images) for split, images in found.items()},
        identity,
    )


def _from(images: Sequence[Encoded], start: int) -> Iterator[Encoded]:
    return itertools.islice(images, start, None)


# --- Parquet ----------------------------------------------------------------------------------------------------


def _parquet(root: Path) -> Source:
    import pyarrow.parquet as pq

    files = {split: _shards(root, names) for split, names in SPLITS.items()}
    layout = parquet.layout_of(files["train"][0])
    if layout is None:
        raise DataError(f"{files['train'][0]} does not hold images and labels in the layout of the Hugging Face hub")
    layouts = [parquet.layout_of(file) for part in files.values() for file in part]
    classes = max(known.classes for known in layouts if known is not None)
    names = layout.names or tuple(str(i) for i in range(classes))
    counts = {split: sum(pq.read_metadata(file).num_rows for file in part) for split, part in files.items()}
    splits: dict[str, Callable[[int], Iterator[Encoded]]] = {}
    for split, part in files.items():
        splits[split] = partial(_rows, part, layout)
    sizes = [(file.name, file.stat().st_size) for part in files.values() for file in part]
    identity = hashlib.sha256(repr(sizes).encode()).hexdigest()
    return Source(f"Parquet files of {root.name}", names, splits, counts, identity)


def _shards(root: Path, names: Sequence[str]) -> list[Path]:
    found = next((name for name in names if any(root.glob(f"{name}*.parquet"))), names[0])
    return parquet.shards(root, found)


def _rows(files: Sequence[Path], layout: parquet.Columns, start: int) -> Iterator[Encoded]:
    for where, data, label in parquet.encoded(files, layout, start):
        yield Encoded(partial(bytes, data), label, where)


# --- tar --------------------------------------------------------------------------------------------------------


def _archives(root: Path, name: str) -> list[Path]:
    """``train*.tar``, or ``train/*.tar``."""
    return sorted(root.glob(f"{name}*.tar")) or sorted((root / name).glob("*.tar"))


def _tar(root: Path) -> Source:
    named: dict[str, list[tuple[str, Encoded]]] = {}
    names = []
    for split, choices in SPLITS.items():
        archives = next((found for name in choices if (found := _archives(root, name))), [])
        if not archives:
            raise DataError(f"{root} has no {split}*.tar")
        named[split] = [image for archive in archives for image in _members(archive)]
        names += [(archive.name, archive.stat().st_size) for archive in archives]
    classes = sorted({name for images in named.values() for name, _ in images}, key=_by_number)
    if all(re.fullmatch(r"\d{1,6}", name) for name in classes):  # labels, of which some may have no image
        classes = [str(i) for i in range(int(classes[-1]) + 1)]
    labels = {name: label for label, name in enumerate(classes)}
    found = {
        split: [Encoded(image.read, labels[name], image.where) for name, image in images]
        for split, images in named.items()
    }
    return _source(f"tar archives of {root.name}", classes, found, names)


def _by_number(name: str) -> tuple[int, str]:
    return (int(name) if re.fullmatch(r"\d{1,6}", name) else -1, name)


def _members(archive: Path) -> list[tuple[str, Encoded]]:
    """The images of an archive and the names of their classes.

    The class is what a file ``KEY.cls`` beside ``KEY.jpg`` says, as WebDataset has it; else the image's folder in the
    archive; else the archive's own name, as in ImageNet's archives of one class each.
    """
    images: dict[str, tuple[str, Encoded]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(archive, "r:") as file:
            for member in file:
                path = Path(member.name)
                key = str(path.with_name(path.name.split(".")[0]))
                if not member.isreg() or member.issparse() or path.name.startswith("."):
                    continue
                if path.suffix.lower() == ".cls":
                    stream = file.extractfile(member)
                    labels[key] = (stream.read(32) if stream else b"").decode("ascii", "replace").strip()
                elif path.suffix.lower() in SUFFIXES:
                    read = partial(_slice, archive, member.offset_data, member.size)
                    name = path.parent.name or archive.stem
                    images[key] = name, Encoded(read, 0, f"{archive}, {member.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive} is not a readable archive without compression: {error}") from None
    for key in labels.keys() & images.keys():
        if not re.fullmatch(r"\d{1,6}", labels[key]):
            raise DataError(f"{archive}, {key}.cls: {labels[key]!r} is no label; expected a whole number from 0")
    if labels and images.keys() - labels.keys():
        raise DataError(f"{archive}: {sorted(images.keys() - labels.keys())[0]} has no .cls beside it")
    return [(labels.get(key, name), image) for key, (name, image) in images.items()]


def _slice(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(length)
    if len(data) != length:
        raise DataError(f"{path} ends in the middle of an image")
    return data
