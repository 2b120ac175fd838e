import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from data_files import md5, write_folder, write_tar

from locallearn.data import archives
from locallearn.data.archives import check_md5, read_batch, read_folder, read_tar
from locallearn.errors import DataError


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "'data' are bytes of shape"),
        ({"labels": [1]}, "'data' are bytes of shape"),
        ({"data": np.zeros((1, 3072), np.float32), "labels": [1]}, "'data' are bytes of shape"),
        ({"data": np.zeros((1, 3071), np.uint8), "labels": [1]}, "'data' are bytes of shape"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "'labels' with one whole number for each of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine": [1, 1]}, "'labels' with one whole number for each of 2"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}, "'labels' with one whole number"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1.5, 2.0]}, "'labels' with one whole number"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [True, False]}, "'labels' with one whole number"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2**70]}, "'labels' with one whole number"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": np.array([1.5, 2])}, "'labels' with one whole number"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": np.array([[1], [2]])}, "'labels' with one whole number"),
    ],
)
def test_batches_of_another_layout(batch, message):
    with pytest.raises(DataError, match=f"^x: expected .*{message}"):
        read_batch(pickle.dumps(batch), "x", "labels")


def test_lists_that_unfold_without_end_are_refused():
    labels = [1]
    for _ in range(64):  # 2**64 numbers, if numpy saw it
        labels = [labels, labels]
    itself = []
    itself.append(itself)
    for odd in (labels, itself):
        with pytest.raises(DataError, match="with one whole number"):
            read_batch(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": odd}), "x", "labels")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, ">i8"])
def test_labels_may_be_an_array_of_any_whole_numbers(kind):
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": np.array([7, 255], kind)}
    _, labels = read_batch(pickle.dumps(batch), "x", "labels")
    assert labels.dtype == np.int64
    assert labels.tolist() == [7, 255]


def test_batch_is_channels_first():
    pixels = np.arange(3072).astype(np.uint8)[None]
    images, labels = read_batch(pickle.dumps({"data": pixels, "labels": [7]}), "x", "labels")
    assert images.shape == (1, 3, 32, 32)
    assert images[0, 1, 2, 3] == (1024 + 2 * 32 + 3) % 256
    assert labels.tolist() == [7]


def test_checksum_names_file_expected_and_found(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"hello")
    check_md5(path, md5(b"hello"))
    with pytest.raises(DataError, match=rf"a is damaged: its MD5 is {md5(b'hello')}, expected {md5(b'other')}"):
        check_md5(path, md5(b"other"))


def test_folder_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "CHECKSUMS", {"official/a": md5(b"1")})
    write_folder(tmp_path, {"a": b"1", "b": b"2"})
    assert read_folder(tmp_path, "official", ["a", "b"]) == {"a": b"1", "b": b"2"}
    with pytest.raises(DataError, match=r"/c is missing"):
        read_folder(tmp_path, "official", ["a", "c"])
    (tmp_path / "a").write_bytes(b"!")
    with pytest.raises(DataError, match=r"/a is damaged"):
        read_folder(tmp_path, "official", ["a"])
    assert read_folder(tmp_path, "other", ["a"]) == {"a": b"!"}


def test_tar_members_are_read_and_nothing_is_written(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    found = write_tar(path, "in", {"a": b"1", "b": b"2", "../../escape": b"3"})
    monkeypatch.setattr(archives, "CHECKSUMS", {"x.tar.gz": found})
    assert read_tar(path, "in", ["b", "a"]) == {"a": b"1", "b": b"2"}
    assert [file.name for file in tmp_path.rglob("*")] == ["x.tar.gz"]
    with pytest.raises(DataError, match=r"x\.tar\.gz does not hold in/c"):
        read_tar(path, "in", ["c"])


def test_tar_links_are_not_followed(tmp_path, monkeypatch):
    (tmp_path / "secret").write_bytes(b"secret")
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("in/a")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        archive.addfile(link)
    monkeypatch.setattr(archives, "CHECKSUMS", {"x.tar.gz": md5(path.read_bytes())})
    with pytest.raises(DataError, match="does not hold in/a"):
        read_tar(path, "in", ["a"])


def test_damaged_archives(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    good = write_tar(path, "in", {"a": os.urandom(5000)})
    monkeypatch.setattr(archives, "CHECKSUMS", {"x.tar.gz": good})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match=rf"x\.tar\.gz is damaged: .*expected {good}"):
        read_tar(path, "in", ["a"])
    # Even where the checksum is that of the damaged file.
    for data in (whole[:-1000], b"no archive", io.BytesIO(whole).read(40) + b"\x00" * 4000):
        path.write_bytes(data)
        monkeypatch.setattr(archives, "CHECKSUMS", {"x.tar.gz": md5(data)})
        with pytest.raises(DataError, match=r"x\.tar\.gz (is not a readable archive|does not hold)"):
            read_tar(path, "in", ["a"])
