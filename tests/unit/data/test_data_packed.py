import io
import json
import multiprocessing
import pickle
import signal
import tarfile

import numpy as np
import pytest
import torch
from data_files import encode, write_parquet
from PIL import Image

import programs
from locallearn.cli.main import main
from locallearn.config import AugmentConfig, DataConfig
from locallearn.data.datasets import load
from locallearn.data.images import cut, decode, fit
from locallearn.data.packing import pack
from locallearn.data.store import ImageStore
from locallearn.data.streaming import StreamedStore, open_store
from locallearn.errors import ConfigError, DataError, UsageError

CROP = AugmentConfig(resized_crop=(0.2, 1.0), flip=0.5)
JITTER = AugmentConfig(crop_padding=2, padding_mode="reflect", flip=0.5, jitter=0.5, grey=0.2)


def _images(count, height=10, width=14, seed=0):
    """Images of three sizes, so that some must be fitted."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height + i % 3, width + i % 2, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 23), ("val", 5)):
        for i, image in enumerate(_images(count)):
            path = tmp_path / "images" / split / ("ant" if i % 2 else "bee") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return tmp_path / "images"


@pytest.fixture
def packed(folder, tmp_path):
    """The packed folder, in several files."""
    pack(folder, tmp_path / "packed", shard_bytes=4000)
    return tmp_path / "packed"


def _load(root, size=8, **options):
    return load(DataConfig("packed", root=str(root), image_size=size, **options))


def _same(first, second):
    first, second = list(first), list(second)
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.images, b.images)
        assert (a.boxes is None) == (b.boxes is None)
        assert a.boxes is None or torch.equal(a.boxes, b.boxes)


def test_held_out_images_of_a_packed_set_are_those_of_the_folder(folder, packed):
    plain = load(DataConfig("folder", root=str(folder), image_size=8, validation=0.3))
    dataset = _load(packed, validation=0.3)
    assert len(dataset.validation.labels) == 7
    for found, expected in ((dataset.train, plain.train), (dataset.validation, plain.validation)):
        assert torch.equal(found.decoded().images, expected.images)
        assert torch.equal(found.labels, expected.labels)
        (read,) = pickle.loads(pickle.dumps(found)).read([2, 0])
        assert torch.equal(torch.from_numpy(read).permute(0, 3, 1, 2), expected.images[[2, 0]])


def test_a_packed_folder_is_the_folder(folder, packed):
    """Same images, order, labels and classes; moments are of whole images and not of fitted ones."""
    plain, dataset = load(DataConfig("folder", root=str(folder), image_size=8)), _load(packed)
    assert len(list(packed.glob("train-*.images"))) > 1
    assert sorted(path.name for path in packed.glob("*.json")) == ["index.json"]
    assert (dataset.classes, dataset.image_size, dataset.channels) == (plain.classes, 8, 3)
    for found, expected in ((dataset.train, plain.train), (dataset.test, plain.test)):
        assert torch.equal(found.decoded().images, expected.images)
        assert torch.equal(found.labels, expected.labels)
    whole = np.array([decode(file, file).convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
                      for file in (folder / "train").rglob("*.png")])  # fmt: skip
    assert dataset.mean == pytest.approx((whole.mean(0) / 255).tolist(), abs=0.003)
    assert all(0.28 < std < 0.30 for std in dataset.std)  # of uniform bytes it is 1 / sqrt(12)


@pytest.mark.parametrize("size", [8, (9, 12)])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_of_a_store_in_memory(packed, workers, size):
    dataset = _load(packed, size)
    held = ImageStore(dataset.train.decoded(), dataset, JITTER, "cpu", 3)
    streamed = StreamedStore(dataset.train, dataset, JITTER, "cpu", 3, workers=workers)
    assert (streamed.steps(4), streamed.smallest(4)) == (6, 3)
    _same(streamed.epoch(1, 4), held.epoch(1, 4))
    _same(streamed.epoch(1, 4, start=3), list(held.epoch(1, 4))[3:])
    _same(streamed.ordered(4), held.ordered(4))
    with pytest.raises(AssertionError):
        _same(streamed.epoch(2, 4), held.epoch(1, 4))


@pytest.mark.parametrize("views", [1, 2])
def test_parts_are_cut_out_of_whole_images_by_any_number_of_processes(packed, views):
    dataset = _load(packed)
    one, more = (StreamedStore(dataset.train, dataset, CROP, "cpu", 0, views=views, workers=n) for n in (0, 2))
    assert one.cuts
    _same(more.epoch(2, 5), one.epoch(2, 5))
    _same(more.epoch(2, 5, start=2), list(one.epoch(2, 5))[2:])
    first = next(StreamedStore(dataset.train, dataset, CROP, "cpu", 0, views=2, workers=0).epoch(2, 5))
    box, position = first.boxes[0].tolist(), int(one.order(2, 5)[0][0])
    height, width = dataset.train.sizes[position]
    assert box[0] + box[2] <= height
    assert box[1] + box[3] <= width
    expected = torch.tensor(cut(decode(dataset.train.encoded(position), ""), box, 8)).permute(2, 0, 1) / 255
    assert any(torch.equal(first.pixels[0], image) for image in (expected, expected.flip(2)))


def test_images_of_the_size_that_is_asked_for_are_cut_as_in_memory(tmp_path, folder):
    for file in folder.rglob("*.png"):
        Image.fromarray(fit(decode(file, file), 8)).save(file)
    pack(folder, tmp_path / "packed")
    dataset = _load(tmp_path / "packed")
    streamed = StreamedStore(dataset.train, dataset, CROP, "cpu", 0, views=2, workers=2)
    assert not streamed.cuts
    _same(streamed.epoch(0, 5), ImageStore(dataset.train.decoded(), dataset, CROP, "cpu", 0, views=2).epoch(0, 5))


def test_the_size_decides_where_images_are_held_and_nothing_else(packed):
    dataset = _load(packed)

    def opened(augment, **options):
        data = DataConfig("packed", workers=0, **options)
        return open_store(dataset.train, dataset, augment, "cpu", 0, data=data)

    assert isinstance(opened(JITTER), ImageStore)
    assert isinstance(opened(JITTER, memory_gib=0), StreamedStore)
    bytes_gib = 23 * 3 * 64 / 2**30
    assert isinstance(opened(JITTER, memory_gib=bytes_gib), ImageStore)
    assert isinstance(opened(JITTER, memory_gib=bytes_gib * 0.99), StreamedStore)
    assert isinstance(opened(CROP, memory_gib=100), StreamedStore)  # in memory it would cut other parts
    _same(opened(JITTER).epoch(0, 5), opened(JITTER, memory_gib=0).epoch(0, 5))


def test_one_batch_starts_no_process_and_the_global_generator_plays_no_part(packed):
    dataset = _load(packed)
    store = StreamedStore(dataset.train, dataset, JITTER, "cpu", 0, workers=2)
    state = torch.get_rng_state()
    batches = store.epoch(0, 5)
    assert next(batches).images.shape == (5, 3, 8, 8)
    assert multiprocessing.active_children() == []
    rest = [batch.images for batch in batches]
    assert len(rest) == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_need_no_image(packed):
    for file in packed.glob("train-*.images"):
        file.write_bytes(bytes(file.stat().st_size))
    dataset = _load(packed)
    batches = list(StreamedStore(dataset.train, dataset, None, "cpu", 0, workers=0).epoch(0, 5))
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == [0] * 11 + [1] * 12
    with pytest.raises(DataError, match=r"train-0000\d\.images is damaged: the checksum of image \d+ differs"):
        batches[0].images  # noqa: B018


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_that_a_process_finds_is_one_line(packed, workers):
    file = packed / "train-00001.images"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    dataset = _load(packed)
    store = StreamedStore(dataset.train, dataset, None, "cpu", 0, workers=workers)
    with pytest.raises(DataError, match=r"^\S*train-00001\.images is damaged: .*pack the set again$"):
        list(store.ordered(4))


def test_limits_and_other_processes(packed):
    dataset = _load(packed, train_limit=7)
    assert len(dataset.train.labels) == 7
    again = pickle.loads(pickle.dumps(dataset.train))
    assert torch.equal(again.decoded().images, _load(packed).train.decoded().images[:7])


def test_every_source_gives_the_same_set(tmp_path, folder):
    """A folder, a tar archive of it, WebDataset's layout, an archive a class, and Parquet."""
    files = {split: sorted((folder / split).rglob("*.png")) for split in ("train", "val")}
    for name in ("plain", "web", "each", "rows"):
        (tmp_path / name).mkdir()
    for split, paths in files.items():
        with tarfile.open(tmp_path / "plain" / f"{split}-0.tar", "w") as archive:
            for path in paths:
                archive.add(path, f"./{split}/{path.parent.name}/{path.name}")
        with tarfile.open(tmp_path / "web" / f"{split}-0.tar", "w") as archive:
            for path in paths:
                _add(archive, f"{path.stem}.png", path.read_bytes())
                _add(archive, f"{path.stem}.cls", str(int(path.parent.name == "bee")).encode())
        for name in ("ant", "bee"):
            (tmp_path / "each" / split).mkdir(exist_ok=True)
            with tarfile.open(tmp_path / "each" / split / f"{name}.tar", "w") as archive:
                for path in paths:
                    if path.parent.name == name:
                        archive.add(path, path.name)
        square = [np.asarray(decode(path, path).resize((10, 10))) for path in paths]
        labels = [int(path.parent.name == "bee") for path in paths]
        write_parquet(tmp_path / "rows" / f"{split}-00000-of-00001.parquet", square, labels, names=["ant", "bee"])
    expected = _contents(folder, tmp_path / "a")
    assert _contents(tmp_path / "plain", tmp_path / "b") == expected
    assert _contents(tmp_path / "each", tmp_path / "c") == expected
    train, test, classes = _contents(tmp_path / "web", tmp_path / "d")
    assert (train, test) == expected[:2]
    assert classes == ("0", "1")
    rows = _load(tmp_path / "rows-packed") if pack(tmp_path / "rows", tmp_path / "rows-packed") else None
    assert rows is not None
    assert rows.classes == ("ant", "bee")
    assert rows.train.labels.tolist() == [int(path.parent.name == "bee") for path in files["train"]]
    first = decode(files["train"][0], "").resize((10, 10))
    assert rows.train.encoded(0) == encode(np.asarray(first))


def _add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _contents(source, target):
    """Encoded images with their labels of both splits, in no order, and the classes."""
    pack(source, target)
    dataset = _load(target)
    parts = [sorted((images.encoded(i), int(images.labels[i])) for i in range(len(images.labels)))
             for images in (dataset.train, dataset.test)]  # fmt: skip
    return (*parts, dataset.classes)


def _bytes(target):
    return {path.name: path.read_bytes() for path in target.iterdir()}


KILLED = """
import os, signal, sys
from locallearn.data.packing import pack
pack(sys.argv[1], sys.argv[2], shard_bytes=4000,
     on_images=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done >= int(sys.argv[3]) else None)
"""


def test_a_kill_while_packing_is_made_good(folder, packed, tmp_path):
    target = tmp_path / "again"
    for done in (1, 12):
        killed = programs.run("-c", KILLED, folder, target, done, folder=tmp_path)
        assert killed.returncode == -signal.SIGKILL
        assert not (target / "index.json").exists()
        with pytest.raises(DataError, match="no packed set: index.json is missing"):
            _load(target)
    (target / ".train-00009.images.1-0.tmp").mkdir()
    with pytest.raises(UsageError, match="begun from another source or with other options"):
        pack(folder, target, shorter_side=6, shard_bytes=4000)
    stamps = {path: path.stat().st_mtime_ns for path in target.glob("train-00000.*")}
    pack(folder, target, shard_bytes=4000)
    assert {path: path.stat().st_mtime_ns for path in target.glob("train-00000.[ie]*")} == {
        path: stamp for path, stamp in stamps.items() if path.suffix != ".part"
    }
    (target / ".train-00009.images.1-0.tmp").rmdir()
    assert _bytes(target) == _bytes(packed)
    with pytest.raises(UsageError, match="is a packed set already"):
        pack(folder, target)


def test_smaller_images_and_damaged_ones(folder, tmp_path):
    damaged = folder / "train/ant/1.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(DataError, match=r"train/ant/1\.png is not a readable image"):
        pack(folder, tmp_path / "whole")
    done = pack(folder, tmp_path / "small", shorter_side=6, skip_damaged=True)
    assert done["train"]["images"] == 22
    assert done["train"]["left_out"] == 1
    sizes = _load(tmp_path / "small").train.sizes
    assert sizes.min(1).tolist() == [6] * 22
    assert set(sizes.max(1)) <= {7, 8, 9}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("index.json", lambda data: data.replace(b'"ant"', b'"asp"'), "its checksum differs"),
        ("index.json", lambda data: data[:40], "is damaged: "),
        ("index.json", lambda data: b"[" * 100_000, "is damaged: "),
        ("train-00000.entries", lambda data: data[:-1] + b"x", "its checksum differs from that in index.json"),
        ("test-00000.images", lambda data: data + b"x", r"it has [\d,]+ bytes, expected"),
    ],
)
def test_damaged_files_are_named_before_anything_is_read(packed, name, change, message):
    path = packed / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        _load(packed)


def test_entries_that_point_elsewhere_are_refused_even_with_a_right_checksum(packed):
    import hashlib

    from locallearn.data.packed import ENTRY, checksum

    values = json.loads((packed / "index.json").read_text())
    path = packed / "train-00000.entries"
    whole = path.read_bytes()
    for field, value, message in (("start", 1 << 40, "do not follow"), ("label", 7, "out of range")):
        entries = np.frombuffer(whole, ENTRY).copy()
        entries[field][1] = value
        path.write_bytes(entries.tobytes())
        values["train"][0]["sha256"] = hashlib.sha256(entries.tobytes()).hexdigest()
        values.pop("sha256", None)
        (packed / "index.json").write_text(json.dumps({**values, "sha256": checksum(values)}))
        with pytest.raises(DataError, match=message):
            _load(packed)


def test_sources_that_hold_nothing(tmp_path, folder):
    with pytest.raises(DataError, match="is no folder"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds nothing to pack; expected train/<class>"):
        pack(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="is there and not empty"):
        pack(folder, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    with tarfile.open(tmp_path / "empty/train.tar", "w:gz") as archive:
        archive.add(folder / "train/ant/1.png")
    with pytest.raises(DataError, match="not a readable archive without compression"):
        pack(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_augmentation_of_ones_own_is_seeded_by_the_batch(packed):
    dataset = _load(packed)

    def noisy(pixels):
        return (pixels + torch.rand(len(pixels), 1, 1, 1)).clamp(0, 1)

    streamed = StreamedStore(dataset.train, dataset, noisy, "cpu", 0, workers=0)
    torch.manual_seed(5)
    whole = list(streamed.epoch(0, 5))
    _same(whole, ImageStore(dataset.train.decoded(), dataset, noisy, "cpu", 0).epoch(0, 5))
    _same(streamed.epoch(0, 5, start=2), whole[2:])
    with pytest.raises(UsageError, match=r"gave \(5, 3, 8\); expected float images \(5, 3, 8, 8\)"):
        next(StreamedStore(dataset.train, dataset, lambda x: x[..., 0], "cpu", 0, workers=0).epoch(0, 5)).images  # noqa: B018


def test_the_command(folder, tmp_path, capsys):
    assert main(["pack", str(folder), str(tmp_path / "out"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["train"]["images"], done["test"]["images"], done["classes"]) == (23, 5, 2)
    assert main(["pack", str(folder), str(tmp_path / "out")]) == 2
    assert "is a packed set already" in capsys.readouterr().err
    assert main(["pack", str(folder), str(tmp_path / "next"), "--shorter-side", "2"]) == 2
    assert "--shorter-side: 2 is not valid; expected a whole number of at least 4" in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("workers", -1), ("memory_gib", -0.5)])
def test_wrong_settings(field, value):
    with pytest.raises(ConfigError, match=rf"data\.{field}: {value} is not valid"):
        DataConfig("packed", **{field: value})
