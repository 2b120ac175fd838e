"""Features of a user's own images or loaders, written to a file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from locallearn.arguments import checked
from locallearn.core.batches import are_classes
from locallearn.core.network import LocalNetwork
from locallearn.data.datasets import ImageSet
from locallearn.data.folder import decode_images, find_images
from locallearn.errors import ConfigError, UsageError
from locallearn.files import readable, replacing
from locallearn.training.depth_features import DepthPlace, FeatureReader, places
from locallearn.training.feature_files import WRITERS, check_output
from locallearn.training.finished import OpenedRun
from locallearn.training.loaders import check_loader, read_network
from locallearn.training.stage_features import checked_stage, stage_places, stage_reader

Module = int | Literal["last"]
"""A module of the network, from 1, or its last one."""


@checked
def embed(
    run: OpenedRun | LocalNetwork,
    folder: str | Path | Iterable[Any],
    output: str | Path,
    module: Module = "last",
    pool: int = 1,
    overwrite: bool = False,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> dict[str, Any]:
    """Write the features of all images in a folder and its sub-folders, or of all examples of a loader.

    The network is in eval mode; only one batch is in memory at a time.

    Args:
        run: an opened run, with a folder of images; or a network, of ``ll.split`` for example, with a
            loader.
        folder: of images, which are resized to the network's input, the shorter side first, and cut to the centre; or
            batches as the network's ``step`` takes them.
        output: ``.parquet`` with columns ``path`` (of a loader ``index``, from 0, and ``label`` where there is a
            class for every example) and ``features`` (list of float32), or ``.npz`` with arrays of these names. It is
            written under a temporary name and renamed.
        module: whose features: a module (stage) from 1, or the last; as ``ll.Trainer.features`` says.
        pool: side that feature maps are averaged to [positions].
        overwrite: replace ``output``.
        precision: of a network's computation; a run has its own.

    Returns:
        What was written: ``file``, ``images``, ``features``, ``module``, ``block``, and of a run ``step``.

    Raises:
        UsageError: no such module, or the file is there, of another kind or cannot be written; a loader gives
            nothing.
        DataError: the folder holds no images, or one cannot be read.
    """
    output = Path(output)
    if pool < 1:
        raise ConfigError("--pool", pool, "a whole number of at least 1")
    check_output(output, overwrite)
    if isinstance(run, LocalNetwork):
        return _of_loader(run, folder, output, module, pool, precision)
    if not isinstance(folder, (str, Path)):
        raise UsageError("folder: a loader is for a network; an opened run takes a folder of images")
    return _of_folder(run, Path(folder), output, module, pool)


def _of_folder(run: OpenedRun, folder: Path, output: Path, module: Module, pool: int) -> dict[str, Any]:
    place = _place(run, module)
    reader = FeatureReader(run.network, [place], run.precision, pool)
    files = find_images(folder)
    size = _features(run, reader, files[0]).shape[1]
    writer = WRITERS[output.suffix]
    with replacing(output) as temporary, writer(temporary, ["path"], len(files), size) as write:
        for part in _parts(files, run.config.train.evaluate_batch_size):
            names = [readable(file.relative_to(folder).as_posix()) for file in part]
            write({"path": names}, _features(run, reader, *part))
    facts = {"images": len(files), "features": size, "module": place.module, "block": place.block, "step": run.step}
    return {"file": str(output), **facts}


def _of_loader(
    network: LocalNetwork, loader: Any, output: Path, module: Module, pool: int, precision: str
) -> dict[str, Any]:
    """Features go to a temporary file first, for a loader may not say how many examples it has."""
    if isinstance(loader, (str, Path)):
        raise UsageError(f"folder: {str(loader)!r} is a folder's name; of a network give a loader of batches")
    check_loader("folder", loader)
    where = stage_places(network)
    place = where[checked_stage(None if module == "last" else module, len(where)) - 1]
    read = stage_reader(network, [place.module], precision, pool)
    sizes: list[int] = []
    labels: list[int] = []
    width = 0
    with tempfile.TemporaryFile() as spool:
        for batch, (features_BD,) in read_network(network, loader, read, precision):
            if features_BD.dim() != 2:
                raise UsageError("folder: the loader gives examples one by one; expected batches, examples first")
            sizes.append(len(features_BD))
            width = features_BD.shape[1]
            spool.write(features_BD.cpu().numpy().astype(np.float32).tobytes())
            labels += batch.labels.tolist() if are_classes(batch.labels) else []
        if not sizes:
            raise UsageError("folder: the loader gave no batch")
        spool.seek(0)
        count = sum(sizes)
        names = ["index", "label"] if len(labels) == count else ["index"]
        with replacing(output) as temporary, WRITERS[output.suffix](temporary, names, count, width) as write:
            start = 0
            for size in sizes:
                rows = range(start, start := start + size)
                features = np.frombuffer(spool.read(4 * size * width), np.float32).reshape(size, width)
                write({"index": list(rows), "label": labels[rows.start : rows.stop]}, features)
    facts = {"images": count, "features": width, "module": place.module, "block": place.block}
    return {"file": str(output), **facts}


def _place(run: OpenedRun, module: Module) -> DepthPlace:
    found = places(run.network, "modules")
    if module == "last":
        return found[-1]
    if not 1 <= module <= len(found):
        raise UsageError(f"--module: {module} is not valid; expected last, or a number from 1 to {len(found)}")
    return found[module - 1]


def _parts(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def _features(run: OpenedRun, reader: FeatureReader, *files: Path) -> np.ndarray:
    images = decode_images(files, run.dataset.image_size, run.dataset.channels)
    store = run.store(ImageSet(images, torch.zeros(len(files), dtype=torch.int64)))
    return reader(next(store.ordered(len(files))).images)[0].cpu().numpy()
