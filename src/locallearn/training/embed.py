"""Features of a user's own images, written to a file."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from locallearn.arguments import checked
from locallearn.data.datasets import ImageSet
from locallearn.data.folder import decode_images, find_images
from locallearn.errors import ConfigError, UsageError
from locallearn.files import readable, replacing
from locallearn.training.features import Place, Reader, places
from locallearn.training.finished import OpenedRun

Module = int | Literal["last"]
"""A module of the network, from 1, or its last one."""

Write = Callable[[list[str], np.ndarray], None]
"""Takes paths and features, float32 [B, D], of some images, in order."""


@checked
def embed(
    run: OpenedRun,
    folder: str | Path,
    output: str | Path,
    module: Module = "last",
    pool: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the features of all images in a folder and its sub-folders.

    The network is in eval mode; only as many images as one evaluation batch are in memory at a time.

    Args:
        run: an opened run.
        folder: images; they are resized to the network's input, the shorter side first, and cut to the centre.
        output: ``.parquet`` with columns ``path`` and ``features`` (list of float32), or ``.npz`` with arrays of
            these names. It is written under a temporary name and renamed.
        module: whose features.
        pool: side that feature maps are averaged to [positions].
        overwrite: replace ``output``.

    Returns:
        What was written: ``file``, ``images``, ``features``, ``module``, ``block``, ``step``.

    Raises:
        UsageError: no such module, or the file is there, of another kind or cannot be written.
        DataError: the folder holds no images, or one cannot be read.
    """
    writers, folder, output = {".parquet": _parquet, ".npz": _npz}, Path(folder), Path(output)
    if pool < 1:
        raise ConfigError("--pool", pool, "a whole number of at least 1")
    if output.suffix not in writers:
        raise UsageError(f"--out: {str(output)!r} is not valid; expected a file name ending in .parquet or .npz")
    if output.exists() and not overwrite:
        raise UsageError(f"--out: {output} is there already; replace it with --overwrite, or name another file")
    if not output.parent.is_dir():
        raise UsageError(f"--out: {output.parent} is no folder; expected one that is there")
    place = _place(run, module)
    reader = Reader(run.network, [place], run.precision, pool)
    files = find_images(folder)
    size = _features(run, reader, files[0]).shape[1]
    with replacing(output) as temporary, writers[output.suffix](temporary, len(files), size) as write:
        for part in _parts(files, run.config.train.evaluate_batch_size):
            write([readable(file.relative_to(folder).as_posix()) for file in part], _features(run, reader, *part))
    facts = {"images": len(files), "features": size, "module": place.module, "block": place.block, "step": run.step}
    return {"file": str(output), **facts}


def _place(run: OpenedRun, module: Module) -> Place:
    found = places(run.network, "modules")
    if module == "last":
        return found[-1]
    if not 1 <= module <= len(found):
        raise UsageError(f"--module: {module} is not valid; expected last, or a number from 1 to {len(found)}")
    return found[module - 1]


def _parts(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def _features(run: OpenedRun, reader: Reader, *files: Path) -> np.ndarray:
    images = decode_images(files, run.dataset.image_size, run.dataset.channels)
    store = run.store(ImageSet(images, torch.zeros(len(files), dtype=torch.int64)))
    return reader(next(store.ordered(len(files))).images)[0].cpu().numpy()


@contextlib.contextmanager
def _parquet(path: Path, images: int, size: int) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("path", pa.string()), ("features", pa.list_(pa.float32()))])
    with pq.ParquetWriter(path, schema) as writer:

        def write(paths: list[str], features_BD: np.ndarray) -> None:
            ends = pa.array(np.arange(0, features_BD.size + 1, size, dtype=np.int32))
            column = pa.ListArray.from_arrays(ends, pa.array(features_BD.reshape(-1)))
            writer.write_table(pa.table([pa.array(paths), column], schema=schema))

        yield write


@contextlib.contextmanager
def _npz(path: Path, images: int, size: int) -> Iterator[Write]:
    """An ``.npz`` is a zip file of ``.npy`` members; the features go into theirs as they come."""
    names: list[str] = []
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (images, size)}
            np.lib.format.write_array_header_1_0(member, header)

            def write(paths: list[str], features_BD: np.ndarray) -> None:
                names.extend(paths)
                member.write(features_BD.astype("<f4").tobytes())

            yield write
        with archive.open("path.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.array(names))
