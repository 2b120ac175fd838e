import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import CIFAR10_NAMES, encode, write_parquet
from PIL import Image

from locallearn.config import DataConfig
from locallearn.data.datasets import load
from locallearn.data.parquet import Layout, layout_of, read_images, shards
from locallearn.errors import DataError

PLAIN = Layout("img", "label", None, 10)


def _images(count, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_layout_with_names(tmp_path):
    write_parquet(tmp_path / "x.parquet", _images(2), [0, 1], names=["cat", "dog", "emu"])
    assert layout_of(tmp_path / "x.parquet") == Layout("img", "label", ("cat", "dog", "emu"), 3)


def test_layout_without_names_counts_labels(tmp_path):
    write_parquet(tmp_path / "x.parquet", _images(3), [0, 41, None], image="image", label="fine_label")
    assert layout_of(tmp_path / "x.parquet") == Layout("image", "fine_label", None, 42)


def test_layout_of_something_else(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)
    assert layout_of(path) is None
    pq.write_table(pa.table({"image": [b"a"], "label": [1]}), path)
    assert layout_of(path) is None
    pq.write_table(pa.table({"image": [{"bytes": b"a", "path": ""}], "label": ["cat"]}), path)
    assert layout_of(path) is None


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
