import io
import os
from pathlib import Path

import data_files
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_files import CIFAR10_NAMES, CIFAR100_NAMES, md5, random_images, write_folder, write_parquet, write_tar
from PIL import Image

from locallearn.config import DataConfig
from locallearn.data import archives, cifar
from locallearn.data.datasets import load
from locallearn.errors import DataError

VERSIONS = {
    "cifar-10-python.tar.gz": ("cifar10", "cifar-10-batches-py", data_files.cifar10_python),
    "cifar-10-binary.tar.gz": ("cifar10", "cifar-10-batches-bin", data_files.cifar10_binary),
    "cifar-100-python.tar.gz": ("cifar100", "cifar-100-python", data_files.cifar100_python),
    "cifar-100-binary.tar.gz": ("cifar100", "cifar-100-binary", data_files.cifar100_binary),
}


@pytest.fixture
def checksums(monkeypatch):
    """The checksums of fabricated files, to be filled by the test."""
    table: dict[str, str] = {}
    monkeypatch.setattr(archives, "CHECKSUMS", table)
    monkeypatch.setattr(cifar, "CHECKSUMS", table)
    return table


def _same(dataset, pixels, labels):
    tests = len(dataset.test.labels)
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32))
    assert torch.equal(dataset.train.images, images[:-tests])
    assert torch.equal(dataset.test.images, images[-tests:])
    assert dataset.train.labels.tolist() == labels[:-tests]
    assert dataset.test.labels.tolist() == labels[-tests:]
    assert dataset.train.images.is_contiguous()
    assert dataset.train.images.dtype == torch.uint8


@pytest.mark.parametrize("archive", VERSIONS)
@pytest.mark.parametrize("place", ["", "sub", "sub/deeper"])
def test_archives(tmp_path, checksums, archive, place):
    name, folder, make = VERSIONS[archive]
    members, pixels, labels = make()
    checksums[archive] = write_tar(tmp_path / place / archive, folder, members)
    dataset = load(DataConfig(name, root=str(tmp_path)))
    _same(dataset, pixels, labels)
    assert dataset.name == name
    assert dataset.classes == tuple(CIFAR10_NAMES if name == "cifar10" else CIFAR100_NAMES)
    kind = "Python" if "python" in archive else "binary"
    assert dataset.source == f"CIFAR-{len(dataset.classes)} (official {kind} archive)"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / place / archive]


@pytest.mark.parametrize("archive", VERSIONS)
@pytest.mark.parametrize("place", ["official", "data/official", "renamed", "."])
def test_unpacked_folders(tmp_path, checksums, archive, place):
    name, folder, make = VERSIONS[archive]
    members, pixels, labels = make()
    checksums.update({f"{folder}/{member}": md5(data) for member, data in members.items()})
    write_folder(tmp_path / place.replace("official", folder), members)
    _same(load(DataConfig(name, root=str(tmp_path))), pixels, labels)


@pytest.mark.parametrize("archive", VERSIONS)
def test_a_damaged_member_is_named(tmp_path, checksums, archive):
    name, folder, make = VERSIONS[archive]
    members, _, _ = make()
    first = next(iter(members))
    checksums[f"{folder}/{first}"] = "0" * 32
    write_folder(tmp_path / folder, members)
    with pytest.raises(DataError, match=rf"{first} is damaged: its MD5 is {md5(members[first])}, expected 0+$"):
        load(DataConfig(name, root=str(tmp_path)))


@pytest.mark.parametrize("archive", VERSIONS)
def test_a_damaged_archive_is_named(tmp_path, archive):
    name, folder, make = VERSIONS[archive]
    found = write_tar(tmp_path / archive, folder, make()[0])
    official = archives.CHECKSUMS[archive]
    with pytest.raises(DataError, match=rf"{archive} is damaged: its MD5 is {found}, expected {official}$"):
        load(DataConfig(name, root=str(tmp_path)))


def test_a_missing_member_is_named(tmp_path, checksums):
    members, _, _ = data_files.cifar10_python()
    del members["data_batch_3"]
    write_folder(tmp_path / "cifar-10-batches-py", members)
    with pytest.raises(DataError, match="data_batch_3 is missing"):
        load(DataConfig("cifar10", root=str(tmp_path)))


def test_binary_files_of_a_wrong_size(tmp_path, checksums):
    members, _, _ = data_files.cifar100_binary()
    members["train.bin"] = members["train.bin"][:-1]
    write_folder(tmp_path / "cifar-100-binary", members)
    with pytest.raises(DataError, match=r"train\.bin: expected records of 3074 bytes, found 15369"):
        load(DataConfig("cifar100", root=str(tmp_path)))


@pytest.mark.parametrize("names", [["a"] * 9, []])
def test_names_of_another_number_of_classes(tmp_path, checksums, names):
    members, _, _ = data_files.cifar10_binary()
    members["batches.meta.txt"] = "\n".join(names).encode()
    write_folder(tmp_path / "cifar-10-batches-bin", members)
    with pytest.raises(DataError, match=f"names of 10 classes, found {len(names)}"):
        load(DataConfig("cifar10", root=str(tmp_path)))


def test_meta_of_another_layout(tmp_path, checksums):
    members, _, _ = data_files.cifar10_python()
    members["batches.meta"] = data_files.python2_pickle({"names": []})
    write_folder(tmp_path / "cifar-10-batches-py", members)
    with pytest.raises(DataError, match=r"batches\.meta: expected a dictionary with a list 'label_names'"):
        load(DataConfig("cifar10", root=str(tmp_path)))


@pytest.mark.parametrize(("name", "title"), [("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")])
def test_missing_data_says_where_and_how(tmp_path, name, title):
    archive = f"{title.lower()}-python.tar.gz"
    for root in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError) as error:
            load(DataConfig(name, root=str(root)))
        assert str(error.value) == (
            f"{title} is not in {root} (data.root); add --data.download, or put {archive} "
            "from https://www.cs.toronto.edu/~kriz/cifar.html there"
        )


def test_download_fetches_the_python_archive(tmp_path, checksums, monkeypatch):
    members, pixels, labels = data_files.cifar10_python()
    calls = []

    def fetch(url, target, md5):
        calls.append((url, target, md5))
        target.parent.mkdir(parents=True)
        checksums[target.name] = write_tar(target, "cifar-10-batches-py", members)

    checksums["cifar-10-python.tar.gz"] = "abc"
    monkeypatch.setattr(cifar, "download", fetch)
    root = tmp_path / "new"
    config = DataConfig("cifar10", root=str(root), download=True)
    _same(load(config), pixels, labels)
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert calls == [(url, root / "cifar-10-python.tar.gz", "abc")]
    load(config)
    assert len(calls) == 1  # what is there is not fetched again


def test_constants(tmp_path, checksums):
    members, _, _ = data_files.cifar100_binary()
    write_folder(tmp_path, members)
    dataset = load(DataConfig("cifar100", root=str(tmp_path)))
    assert np.allclose(np.array(dataset.mean) * 255, (125.3, 123.0, 113.9))
    assert np.allclose(np.array(dataset.std) * 255, (63.0, 62.1, 66.7))
    assert (dataset.augment.crop_padding, dataset.augment.padding_mode, dataset.augment.flip) == (4, "reflect", 0.5)


def _write_both(folder: Path, classes: int, seed: int = 0, **options):
    """Training files of 6 and test files of 4 images; gives the images [10, 3, 32, 32] and labels."""
    pixels, _ = random_images(10, classes, seed)
    labels = [0, classes - 1, *range(1, 9)]
    images_HWC = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    write_parquet(folder / "train.parquet", images_HWC[:6], labels[:6], **options)
    write_parquet(folder / "test.parquet", images_HWC[6:], labels[6:], **options)
    return pixels, labels


@pytest.mark.parametrize("place", ["", "cifar10-jpeg", "cifar10/plain_text", "data"])
@pytest.mark.parametrize("image", ["img", "image"])
@pytest.mark.parametrize("names", [CIFAR10_NAMES, None])
def test_parquet_of_cifar10(tmp_path, place, image, names):
    pixels, labels = _write_both(tmp_path / place, 10, image=image, names=names)
    dataset = load(DataConfig("cifar10", root=str(tmp_path)))
    _same(dataset, pixels, labels)
    assert dataset.classes == tuple(CIFAR10_NAMES)
    assert dataset.source == "CIFAR-10 (Parquet, PNG images)"


@pytest.mark.parametrize("label", ["label", "fine_label"])
@pytest.mark.parametrize("names", [CIFAR100_NAMES, None])
def test_parquet_of_cifar100(tmp_path, label, names):
    pixels, labels = _write_both(tmp_path / "data", 100, label=label, names=names)
    dataset = load(DataConfig("cifar100", root=str(tmp_path)))
    _same(dataset, pixels, labels)
    assert dataset.classes == tuple(names or (str(i) for i in range(100)))


@pytest.mark.parametrize("names", [(CIFAR10_NAMES, CIFAR100_NAMES), (None, None)])
@pytest.mark.parametrize("first", ["cifar10", "cifar100"])
def test_the_two_sets_are_not_confused(tmp_path, names, first):
    places = {"cifar10": "a", "cifar100": "b"} if first == "cifar10" else {"cifar10": "b", "cifar100": "a"}
    ten = _write_both(tmp_path / places["cifar10"], 10, seed=1, names=names[0])
    label = "fine_label" if names[1] is None else "label"
    hundred = _write_both(tmp_path / places["cifar100"], 100, seed=2, names=names[1], label=label)
    _same(load(DataConfig("cifar10", root=str(tmp_path))), *ten)
    _same(load(DataConfig("cifar100", root=str(tmp_path))), *hundred)


@pytest.mark.parametrize(
    "options", [{"names": [str(i) for i in range(10)]}, {"names": CIFAR10_NAMES[:9]}, {"label": "fine_label"}]
)
def test_other_sets_are_not_taken_for_cifar10(tmp_path, options):
    _write_both(tmp_path, 9, **options)
    with pytest.raises(DataError, match="CIFAR-10 is not in"):
        load(DataConfig("cifar10", root=str(tmp_path)))


def test_original_files_come_before_parquet(tmp_path, checksums):
    _write_both(tmp_path / "a", 10, seed=1, names=CIFAR10_NAMES)
    members, pixels, labels = data_files.cifar10_python()
    write_folder(tmp_path / "z", members)
    _same(load(DataConfig("cifar10", root=str(tmp_path))), pixels, labels)


def test_limits_reach_the_parquet_reader(tmp_path, monkeypatch):
    pixels, labels = _write_both(tmp_path, 10, names=CIFAR10_NAMES)
    seen = []
    read = cifar.parquet.read_images
    monkeypatch.setattr(cifar.parquet, "read_images", lambda *given: seen.append(given[3]) or read(*given))
    dataset = load(DataConfig("cifar10", root=str(tmp_path), train_limit=3, test_limit=2))
    assert seen == [3, 2]
    assert dataset.train.labels.tolist() == labels[:3]
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels[6:8].reshape(-1, 3, 32, 32)))


def test_a_parquet_set_without_its_test_half(tmp_path):
    _write_both(tmp_path, 10, names=CIFAR10_NAMES)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"has no test\*\.parquet"):
        load(DataConfig("cifar10", root=str(tmp_path)))


ROOT = Path(os.environ.get("LOCALLEARN_DATA", ""))


@pytest.mark.skipif(
    not (ROOT / "cifar10-jpeg/train.parquet").is_file(), reason="no cifar10-jpeg/train.parquet in $LOCALLEARN_DATA"
)
def test_real_cifar10():
    dataset = load(DataConfig("cifar10", train_limit=2000, test_limit=1500))
    assert dataset.source == "CIFAR-10 (Parquet, JPEG images)"
    assert dataset.classes == tuple(CIFAR10_NAMES)
    table = pq.read_table(ROOT / "cifar10-jpeg/test.parquet").slice(1234, 1)
    with Image.open(io.BytesIO(table["img"][0]["bytes"].as_py())) as image:
        assert np.array_equal(dataset.test.images[1234].permute(1, 2, 0).numpy(), np.asarray(image))
    assert dataset.test.labels[1234] == table["label"][0].as_py()
    pixels = dataset.train.images.double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(dataset.mean).double(), atol=0.01)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(dataset.std).double(), atol=0.01)
