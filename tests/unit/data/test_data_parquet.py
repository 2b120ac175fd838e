import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_files import CIFAR10_NAMES, encode, write_parquet
from PIL import Image

from locallearn.config import DataConfig
from locallearn.data.datasets import load
from locallearn.data.parquet import Columns, ColumnsError, layout_of, read_images, shards
from locallearn.errors import DataError

PLAIN = Columns("img", "label", None, 10)


def _images(count, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_layout_with_names(tmp_path):
    write_parquet(tmp_path / "x.parquet", _images(2), [0, 1], names=["cat", "dog", "emu"])
    assert layout_of(tmp_path / "x.parquet") == Columns("img", "label", ("cat", "dog", "emu"), 3)


def test_layout_without_names_counts_labels(tmp_path):
    write_parquet(tmp_path / "x.parquet", _images(3), [0, 41, None], image="image", label="fine_label")
    assert layout_of(tmp_path / "x.parquet") == Columns("image", "fine_label", None, 42)


@pytest.mark.parametrize("names", [None, 7, "airplane", {"cat": 0}, [["cat"]]])
def test_names_of_another_shape_are_no_names(tmp_path, names):
    path = tmp_path / "x.parquet"
    write_parquet(path, _images(3), [0, 2, 1])
    told = json.dumps({"info": {"features": {"label": {"names": names}}}})
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": told}), path)
    assert layout_of(path) == Columns("img", "label", None, 3)


def test_layout_of_something_else(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    assert layout_of(path) is None
    pq.write_table(pa.table({"image": [b"a"], "label": [1]}), path)
    assert layout_of(path) is None


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"image": [{"bytes": b"a"}], "label": ["cat"]}, r"image \(images\), label \(string\)"),
        ({"image": [{"bytes": b"a"}], "label": [1.0]}, r"image \(images\), label \(double\)"),
        ({"img": [{"bytes": b"a"}], "target": [1]}, r"img \(images\), target \(int64\)"),
        ({"picture": [{"bytes": b"a"}], "label": [1]}, r"picture \(images\), label \(int64\)"),
        ({"img": [{"bytes": b"a"}]}, r"img \(images\)"),
    ],
)
def test_other_columns_are_told(tmp_path, columns, found):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    told = rf"train\.parquet has the columns {found}; expected images named img or image and whole numbers named"
    with pytest.raises(ColumnsError, match=told):
        layout_of(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=rf"CIFAR-10 is not in .*{told}"):
        load(DataConfig("cifar10", root=str(tmp_path)))


def test_a_set_beside_another_whose_columns_are_odd_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    pq.write_table(pa.table({"img": [{"bytes": b"a"}], "target": [1]}), tmp_path / "a" / "train.parquet")
    for split in ("train", "test"):
        write_parquet(tmp_path / "b" / f"{split}.parquet", _images(2, 32), [0, 1], names=CIFAR10_NAMES)
    assert load(DataConfig("cifar10", root=str(tmp_path))).test.labels.tolist() == [0, 1]


WHOLE = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("kind", [*WHOLE, "dictionary"])
@pytest.mark.parametrize("names", [CIFAR10_NAMES, None])
def test_labels_may_be_any_whole_numbers(tmp_path, kind, names):
    for split in ("train", "test"):
        path = tmp_path / f"{split}.parquet"
        write_parquet(path, _images(3, 32), [9, 0, 3], names=names)
        table = pq.read_table(path)
        whole = table["label"].dictionary_encode() if kind == "dictionary" else table["label"].cast(kind)
        pq.write_table(table.set_column(1, "label", whole), path)
    labels = load(DataConfig("cifar10", root=str(tmp_path))).train.labels
    assert labels.dtype == torch.int64
    assert labels.tolist() == [9, 0, 3]


def test_a_missing_label_of_an_unsigned_type_is_found(tmp_path):
    write_parquet(tmp_path / "test.parquet", _images(3, 32), [0, 1, 2], names=CIFAR10_NAMES)
    write_parquet(tmp_path / "train.parquet", _images(3, 32), [0, None, 2], names=CIFAR10_NAMES)
    table = pq.read_table(tmp_path / "train.parquet")
    table = table.set_column(1, "label", table["label"].cast("uint8"))
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"training images: label -1 is outside 0\.\.9"):
        load(DataConfig("cifar10", root=str(tmp_path)))


def test_a_label_that_no_int64_holds_is_refused(tmp_path):
    write_parquet(tmp_path / "test.parquet", _images(1, 32), [0], names=CIFAR10_NAMES)
    write_parquet(tmp_path / "train.parquet", _images(2, 32), [0, 1], names=CIFAR10_NAMES)
    table = pq.read_table(tmp_path / "train.parquet")
    table = table.set_column(1, "label", pa.array([0, 2**64 - 1], pa.uint64()))
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet is not a readable Parquet file: .*18446744073709551615"):
        load(DataConfig("cifar10", root=str(tmp_path)))


def test_images_are_exact_over_several_files_and_batches(tmp_path):
    images = _images(2100)
    labels = (np.arange(2100) % 10).tolist()
    write_parquet(tmp_path / "train-00000-of-00002.parquet", images[:1500], labels[:1500])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", images[1500:], labels[1500:])
    files = shards(tmp_path, "train")
    assert [file.name[:11] for file in files] == ["train-00000", "train-00001"]
    for limit in (0, 1, 999, 1000, 1001, 1500, 1501, 5000):
        parts, encoding = read_images(files, PLAIN, 4, limit)
        found = np.concatenate([some for some, _ in parts])
        assert np.array_equal(found, images.transpose(0, 3, 1, 2)[: limit or None])
        assert np.concatenate([some for _, some in parts]).tolist() == labels[: limit or None]
        assert encoding == "PNG"


def test_jpeg_and_grey_images(tmp_path):
    images = _images(2, size=32)
    write_parquet(tmp_path / "x.parquet", images, [0, 1], kind="JPEG")
    parts, encoding = read_images([tmp_path / "x.parquet"], PLAIN, 32, 0)
    assert encoding == "JPEG"
    with Image.open(io.BytesIO(encode(images[1], "JPEG"))) as image:
        assert np.array_equal(parts[0][0][1], np.asarray(image).transpose(2, 0, 1))
    write_parquet(tmp_path / "x.parquet", images[..., 0], [0, 1])
    parts, _ = read_images([tmp_path / "x.parquet"], PLAIN, 32, 0)
    assert np.array_equal(parts[0][0], np.repeat(images[:, None, :, :, 0], 3, axis=1))


def test_missing_shards(tmp_path):
    write_parquet(tmp_path / "test-00001-of-00003.parquet", _images(1), [0])
    with pytest.raises(DataError, match=r"test-00001-of-00003\.parquet is one of 3 files, but 1 of them"):
        shards(tmp_path, "test")
    with pytest.raises(DataError, match=r"has no train\*\.parquet"):
        shards(tmp_path, "train")


@pytest.mark.parametrize("keep", [10, 400, -1, -200])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = tmp_path / "train.parquet"
    write_parquet(path, _images(50, 32), [0] * 50, names=CIFAR10_NAMES)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train\.parquet is not a readable Parquet file") as error:
        load(DataConfig("cifar10", root=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_damaged_pages_are_found(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, _images(50, 32), [0] * 50)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56  # the first page's header
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.parquet is not a readable Parquet file"):
        read_images([path], PLAIN, 32, 0)


def test_a_broken_image_is_named_by_row(tmp_path):
    path = tmp_path / "x.parquet"
    good = encode(_images(1)[0])
    for bad in (b"no image", good[:40], None):
        rows = [{"bytes": good, "path": None}, {"bytes": bad, "path": "x.png"}]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({"img": pa.array(rows, kind), "label": [1, 2]}), path)
        with pytest.raises(DataError, match=r"x\.parquet, row 1 is not a readable JPEG or PNG image"):
            read_images([path], PLAIN, 4, 0)
        read_images([path], PLAIN, 4, 1)  # a limit stops before it


def test_images_of_another_size_are_named_by_row(tmp_path):
    write_parquet(tmp_path / "x.parquet", _images(3, 28), [0, 1, 2])
    with pytest.raises(DataError, match=r"row 0 is 28 x 28 pixels, expected 32 x 32"):
        read_images([tmp_path / "x.parquet"], PLAIN, 32, 0)


def test_a_missing_label_is_found(tmp_path):
    write_parquet(tmp_path / "train.parquet", _images(3, 32), [0, None, 2], names=CIFAR10_NAMES)
    write_parquet(tmp_path / "test.parquet", _images(3, 32), [0, 1, 2], names=CIFAR10_NAMES)
    with pytest.raises(DataError, match=r"training images: label -1 is outside 0\.\.9"):
        load(DataConfig("cifar10", root=str(tmp_path)))
