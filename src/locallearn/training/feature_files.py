"""Files of features: Parquet and npz, written a part at a time."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from locallearn.errors import UsageError

Columns = dict[str, list[Any]]
"""What is told of some examples beside their features: ``path``, ``index`` or ``label``."""

Write = Callable[[Columns, np.ndarray], None]
"""Takes columns, and features, float32 [B, D], of some examples, in order."""


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written.

    Raises:
        UsageError: it is of another kind, is there already, or its folder is not.
    """
    if output.suffix not in WRITERS:
        raise UsageError(f"--out: {str(output)!r} is not valid; expected a file name ending in .parquet or .npz")
    if output.exists() and not overwrite:
        raise UsageError(f"--out: {output} is there already; replace it with --overwrite, or name another file")
    if not output.parent.is_dir():
        raise UsageError(f"--out: {output.parent} is no folder; expected one that is there")


@contextlib.contextmanager
def _parquet(path: Path, names: Sequence[str], rows: int, size: int) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: pa.string() if name == "path" else pa.int64() for name in names}
    schema = pa.schema([*kinds.items(), ("features", pa.list_(pa.float32()))])
    with pq.ParquetWriter(path, schema) as writer:

        def write(columns: Columns, features_BD: np.ndarray) -> None:
            ends = pa.array(np.arange(0, features_BD.size + 1, size, dtype=np.int32))
            features = pa.ListArray.from_arrays(ends, pa.array(features_BD.reshape(-1)))
            values = [pa.array(columns[name], kinds[name]) for name in names]
            writer.write_table(pa.table([*values, features], schema=schema))

        yield write


@contextlib.contextmanager
def _npz(path: Path, names: Sequence[str], rows: int, size: int) -> Iterator[Write]:
    """An ``.npz`` is a zip file of ``.npy`` members; the features go into theirs as they come."""
    told: Columns = {name: [] for name in names}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, size)}
            np.lib.format.write_array_header_1_0(member, header)

            def write(columns: Columns, features_BD: np.ndarray) -> None:
                for name in names:
                    told[name] += columns[name]
                member.write(features_BD.astype("<f4").tobytes())

            yield write
        for name, values in told.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.array(values))


WRITERS = {".parquet": _parquet, ".npz": _npz}
"""By the file's ending; each is given the file, names of columns, how many examples and how many features."""
