import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import locallearn as ll
from locallearn.config import DataConfig
from locallearn.data.datasets import load
from locallearn.data.folder import read_images
from locallearn.data.packing import pack
from locallearn.errors import ConfigError, DataError


def _save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _flat(value, height=32, width=32):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def root(tmp_path):
    """Two classes; the grey value of an image tells which it is."""
    for i, value in enumerate((10, 11, 12)):
        _save(tmp_path / f"train/ant/{i}.png", _flat(value))
    _save(tmp_path / "train/bee/deep/0.PNG", _flat(20))
    _save(tmp_path / "train/bee/1.bmp", _flat(21))
    _save(tmp_path / "test/ant/0.png", _flat(13))
    _save(tmp_path / "test/bee/0.png", _flat(22))
    (tmp_path / "train/ant/notes.txt").write_text("no image")
    (tmp_path / "train/ant/._0.png").write_text("no image")
    (tmp_path / "train/.cache").mkdir()
    return tmp_path


def test_classes_take_turns_and_labels_follow_names(root):
    dataset = load(DataConfig("folder", root=str(root)))
    assert dataset.classes == ("ant", "bee")
    assert dataset.train.images.shape == (5, 3, 32, 32)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [10, 21, 11, 20, 12]
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert dataset.test.images[:, 0, 0, 0].tolist() == [13, 22]
    assert dataset.test.labels.tolist() == [0, 1]
    assert dataset.train.labels.dtype == torch.int64
    assert dataset.source == f"images of the folder {root.name}, resized to 32 x 32"


def test_val_is_as_good_as_test(root):
    (root / "test").rename(root / "val")
    assert load(DataConfig("folder", root=str(root))).test.labels.tolist() == [0, 1]


def test_mean_and_std_are_those_of_the_training_images(root):
    rng = np.random.default_rng(0)
    for i in range(3):
        _save(root / f"train/ant/{i}.png", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    dataset = load(DataConfig("folder", root=str(root)))
    pixels = dataset.train.images.double() / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert dataset.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_channel_that_never_changes_is_not_scaled(tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            _save(tmp_path / split / "one" / f"{i}.png", _flat(0))
    dataset = load(DataConfig("folder", root=str(tmp_path)))
    assert dataset.mean == (0.0, 0.0, 0.0)
    assert dataset.std == (1.0, 1.0, 1.0)


def test_limits_take_the_first_before_decoding(root):
    (root / "train/bee/deep/0.PNG").write_text("damaged")
    dataset = load(DataConfig("folder", root=str(root), train_limit=3, test_limit=1))
    assert dataset.train.images[:, 0, 0, 0].tolist() == [10, 21, 11]
    assert dataset.test.labels.tolist() == [0]


def test_the_centre_is_cut_out_and_the_shorter_side_resized(tmp_path):
    stripes = np.zeros((8, 24, 3), np.uint8)
    stripes[:, 8:16] = (200, 100, 50)
    _save(tmp_path / "wide.png", stripes)
    _save(tmp_path / "tall.png", stripes.transpose(1, 0, 2))
    _save(tmp_path / "twice.png", stripes.repeat(2, 0).repeat(2, 1))
    names, images = read_images(tmp_path, 8, 3)
    assert names == ["tall.png", "twice.png", "wide.png"]
    expected = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(3, 3, 8, 8)
    # "twice" is scaled by a filter that reaches over the edge of the cut.
    assert torch.equal(images[[0, 2]], expected[:2])
    assert torch.equal(images[1, :, :, 1:-1], expected[0, :, :, 1:-1])


def test_image_size_sets_size_and_padding(root):
    dataset = load(DataConfig("folder", root=str(root), image_size=16))
    assert dataset.image_size == 16
    assert dataset.train.images[:, 0, 0, 0].tolist() == [10, 21, 11, 20, 12]
    assert (dataset.augment.crop_padding, dataset.augment.flip) == (2, 0.5)


def test_rotated_photographs_are_turned_upright(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    _save(tmp_path / "a.png", pixels, exif=exif)
    _, images = read_images(tmp_path, 32, 3)
    assert images[0, :, :16].max() == 0
    assert images[0, :, 16:].min() == 255


def test_prediction_reads_nested_folders_and_grey(tmp_path):
    _save(tmp_path / "b/x.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    _save(tmp_path / "a.png", np.full((4, 4), 7, np.uint8))
    names, images = read_images(tmp_path, 4, 1)
    assert names == ["a.png", "b/x.png"]
    assert images.shape == (2, 1, 4, 4)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [7, 76]  # 0.299 * 255
    _, images = read_images(tmp_path, 4, 3)
    assert images[:, :, 0, 0].tolist() == [[7, 7, 7], [255, 0, 0]]


def test_sixteen_bit_images_are_refused(tmp_path):
    _save(tmp_path / "a.png", np.full((4, 4), 40000, np.uint16))
    with pytest.raises(DataError, match=r"a\.png is not a readable image: pixels of mode I;16, expected 8 bits"):
        read_images(tmp_path, 4, 1)


def test_damaged_images_are_named(root):
    path = root / "train/ant/1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"train/ant/1\.png is not a readable image"):
        load(DataConfig("folder", root=str(root)))


def test_all_damaged_images_are_named_at_once(root):
    (root / "train/ant/1.png").write_bytes(b"")
    (root / "train/bee/deep/0.PNG").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    (root / "test/bee/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"^3 of 7 images cannot be read: ") as error:
        load(DataConfig("folder", root=str(root)))
    assert all(name in str(error.value) for name in ("train/ant/1.png", "train/bee/deep/0.PNG", "test/bee/0.png"))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"^2 of 5 images cannot be read: "):
        read_images(root / "train", 8, 3)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "deep/.ipynb_checkpoints", ".a/b"])
def test_hidden_folders_inside_a_class_hold_no_images(root, hidden):
    before = load(DataConfig("folder", root=str(root))).train
    _save(root / "train/ant" / hidden / "0-checkpoint.png", _flat(99))
    _save(root / ".thumbnails" / "0.png", _flat(99))
    found = load(DataConfig("folder", root=str(root))).train
    assert torch.equal(found.images, before.images)
    assert len(read_images(root, 8, 3)[0]) == 7


def test_a_set_in_a_hidden_folder_is_read(root):
    """What the user names himself is not left out."""
    root.rename(root.parent / ".mine")
    assert len(load(DataConfig("folder", root=str(root.parent / ".mine"))).train.labels) == 5


def test_names_that_are_no_utf8_can_be_printed_and_written(root):
    for split in ("train", "test"):
        os.rename(root / split / "ant", os.fsencode(root / split) + b"/caf\xe9")
    os.rename(root / "train" / "bee" / "1.bmp", os.fsencode(root) + b"/train/bee/\xff.bmp")
    dataset = load(DataConfig("folder", root=str(root)))
    assert dataset.classes == ("bee", "caf\\xe9")
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 1]
    names, _ = read_images(root / "train", 8, 3)
    assert "bee/\\xff.bmp" in names
    assert all(name.encode("utf-8") for name in names)


def test_a_folder_that_cannot_be_looked_into_is_named(root, monkeypatch):
    walk = os.walk

    def closed(top, onerror):
        onerror(PermissionError(13, "Permission denied", str(top / "deep")))
        return walk(top)

    monkeypatch.setattr(os, "walk", closed)
    with pytest.raises(DataError, match="deep cannot be read: Permission denied"):
        load(DataConfig("folder", root=str(root)))


def test_one_class_alone_trains_no_classifier(root):
    for split in ("train", "test"):
        (root / split / "bee").rename(root / split / ".bee")
    config = dataclasses.replace(ll.recipe("e2e"), data=DataConfig("folder", root=str(root)))
    with pytest.raises(ConfigError, match=r"classes: 1 is not valid; expected at least 2 with method e2e"):
        ll.train(config, root / "run")
    assert not (root / "run").exists()
    ll.build_network(dataclasses.replace(ll.recipe("simclr"), data=config.data), ll.ImageShape(3, 32, 1))


def test_folders_without_images(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        read_images(tmp_path / "empty", 8, 3)
    for split in ("train", "test"):
        (root / split / "cow").mkdir()
    with pytest.raises(DataError, match="train/cow holds no images"):
        load(DataConfig("folder", root=str(root)))


def test_classes_must_agree(root):
    (root / "test/bee").rename(root / "test/bea")
    with pytest.raises(DataError, match="hold different classes: 'bea' is in one of them only"):
        load(DataConfig("folder", root=str(root)))


def test_of_folders_of_classes_alone_every_fifth_image_is_for_testing(tmp_path):
    for i in range(11):
        _save(tmp_path / f"ant/{i:02}.png", _flat(10 + i))
    for i in range(5):
        _save(tmp_path / f"bee/{i}.png", _flat(30 + i))
    found = load(DataConfig("folder", root=str(tmp_path)))
    assert found.classes == ("ant", "bee")
    assert sorted(found.test.images[:, 0, 0, 0].tolist()) == [14, 19, 34]
    assert sorted(found.train.images[:, 0, 0, 0].tolist()) == [10, 11, 12, 13, 15, 16, 17, 18, 20, 30, 31, 32, 33]
    (tmp_path / "bee/4.png").unlink()
    with pytest.raises(DataError, match="bee holds 4 images; expected at least 5, as every 5th is for tests"):
        load(DataConfig("folder", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["Train", "validation", "empty"])
def test_parts_and_empty_folders_are_no_classes(tmp_path, name):
    for i in range(5):
        _save(tmp_path / f"ant/{i}.png", _flat(i))
        if name != "empty":
            _save(tmp_path / name / f"{i}.png", _flat(i))
    (tmp_path / name).mkdir(exist_ok=True)
    with pytest.raises(DataError, match="has no folders train and test"):
        load(DataConfig("folder", root=str(tmp_path)))


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path} \(data\.root\) has no folders train and test"):
        load(DataConfig("folder", root=str(tmp_path)))
    with pytest.raises(DataError, match="there is nothing to download"):
        load(DataConfig("folder", root=str(tmp_path), download=True))
    with pytest.raises(DataError, match=r"nowhere \(data\.root\) is no folder"):
        load(DataConfig("folder", root=str(tmp_path / "nowhere")))
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"train holds no folders of classes; expected train/<class>/\*\.png"):
        load(DataConfig("folder", root=str(tmp_path)))


def test_formats_that_are_not_named_are_refused_whatever_their_ending(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is not a readable image: cannot identify"):
        read_images(tmp_path, 8, 3)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda path: path.symlink_to("/gone.png"), "the link leads nowhere"),
        (lambda path: path.symlink_to(path), "the link leads nowhere"),
        (os.mkfifo, "it is no file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no file"),
    ],
)
def test_names_of_images_that_are_no_files_are_told_and_not_left_out(root, put, message):
    put(root / "train" / "ant" / "9.png")
    told = rf"train/ant/9\.png is not a readable image: {message}"
    for read in (lambda: load(DataConfig("folder", root=str(root))), lambda: pack(root, root / "packed")):
        with pytest.raises(DataError, match=told):
            read()
    pack(root, root / "rest", skip_damaged=True)
    assert len(load(DataConfig("packed", root=str(root / "rest"))).train.labels) == 5
