"""Small files in the layouts of the official ones, for the tests beside this module."""

import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100_NAMES = [f"thing_{i}" for i in range(100)]


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def random_images(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Rows of 3,072 bytes, red first, and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, classes, count).tolist()


def python2_pickle(value: object) -> bytes:
    """The pickle that Python 2 and an old numpy wrote, as the official files are."""
    return b"\x80\x02" + _py2(value) + b"."


def _py2(value: object) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_py2(key) + _py2(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_py2(item) for item in value) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.uint8
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(_py2(size) for size in value.shape) + b"t"
    return array + b"(K\x01" + shape + dtype + b"\x89" + _py2(value.tobytes().decode("latin1")) + b"tb"


def cifar10_python(count: int = 4) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    """Members of cifar-10-batches-py, and all their images and labels: five training batches, then the test."""
    members, images, labels = {}, [], []
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, some = random_images(count, 10, seed=i)
        members[name] = python2_pickle({"batch_label": name, "labels": some, "data": pixels, "filenames": ["a.png"]})
        images.append(pixels)
        labels += some
    members["batches.meta"] = python2_pickle({"num_cases_per_batch": count, "label_names": CIFAR10_NAMES})
    return members, np.concatenate(images), labels


def cifar10_binary(count: int = 4) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    members, images, labels = {}, [], []
    for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        pixels, some = random_images(count, 10, seed=i)
        members[name] = b"".join(bytes([label]) + row.tobytes() for label, row in zip(some, pixels, strict=True))
        images.append(pixels)
        labels += some
    members["batches.meta.txt"] = ("\n".join(CIFAR10_NAMES) + "\n\n").encode()
    return members, np.concatenate(images), labels


def cifar100_python(count: int = 5) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    members, images, labels = {}, [], []
    for i, name in enumerate(["train", "test"]):
        pixels, fine = random_images(count, 100, seed=i)
        coarse = [label // 5 for label in fine]
        members[name] = python2_pickle({"fine_labels": fine, "coarse_labels": coarse, "data": pixels})
        images.append(pixels)
        labels += fine
    members["meta"] = python2_pickle({"fine_label_names": CIFAR100_NAMES, "coarse_label_names": ["x"] * 20})
    return members, np.concatenate(images), labels


def cifar100_binary(count: int = 5) -> tuple[dict[str, bytes], np.ndarray, list[int]]:
    members, images, labels = {}, [], []
    for i, name in enumerate(["train.bin", "test.bin"]):
        pixels, fine = random_images(count, 100, seed=i)
        rows = [bytes([label // 5, label]) + row.tobytes() for label, row in zip(fine, pixels, strict=True)]
        members[name] = b"".join(rows)
        images.append(pixels)
        labels += fine
    members["fine_label_names.txt"] = ("\n".join(CIFAR100_NAMES) + "\n").encode()
    return members, np.concatenate(images), labels


def write_folder(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in members.items():
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, folder: str, members: dict[str, bytes]) -> str:
    """Write an archive and give its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return md5(path.read_bytes())


def encode(image_HWC: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: np.ndarray,
    labels: list[int | None],
    *,
    image: str = "img",
    label: str = "label",
    names: list[str] | None = None,
    kind: str = "PNG",
) -> None:
    """Images uint8 [N, H, W, 3] as the hub writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": encode(one, kind), "path": None} for one in images]
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kinds), label: pa.array(labels, pa.int64())})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
