"""Features of a folder of images: what is written is what the network computes, in bounded memory."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import small
from locallearn.data.datasets import ImageSet
from locallearn.data.folder import read_images
from locallearn.errors import DataError, UsageError
from locallearn.training import embed as embedding
from locallearn.training import runs
from locallearn.training.depth_features import FeatureReader, places
from locallearn.training.embed import embed
from locallearn.training.finished import open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "run"
    train = dataclasses.replace(small.TRAIN, epochs=1, evaluate_batch_size=3)
    runs.train(small.config(depth=2, width=(2, 1), train=train), folder)
    return open_run(folder)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for i, name in enumerate(("cats/1", "cats/2", "dogs/1", "dogs/2", "é", "x", "y", "z")):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((load_digits().images[i] * 15).astype(np.uint8)).save(path)
    return folder


def expected(run, images, module, pool=1):
    names, pixels = read_images(images, 8, 1)
    store = run.store(ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64)))
    reader = FeatureReader(run.network, [places(run.network, "modules")[module - 1]], "fp32", pool)
    return names, reader(next(store.ordered(100)).images)[0].numpy()


def read(path):
    if path.suffix == ".npz":
        with np.load(path) as file:  # refuses pickles
            return file["path"].tolist(), file["features"]
    table = pq.read_table(path)
    assert [str(field.type) for field in table.schema] == ["string", "list<element: float>"]
    return table["path"].to_pylist(), np.array(table["features"].to_pylist(), np.float32)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
@pytest.mark.parametrize(("module", "pool"), [("last", 1), (1, 1), (2, 2)])
def test_what_is_written_is_what_the_network_computes(run, images, tmp_path, suffix, module, pool):
    out = tmp_path / f"out{suffix}"
    done = embed(run, images, out, module, pool)
    names, features = expected(run, images, 2 if module == "last" else module, pool)
    paths, written = read(out)
    assert paths == names == sorted(names)
    assert paths[:2] == ["cats/1.png", "cats/2.png"]
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, features, rtol=1e-5, atol=1e-6)  # batches of 3 and of 8 round differently
    assert done == {
        "file": str(out), "images": 8, "features": features.shape[1], "module": 2 if module == "last" else module,
        "block": {"last": "2.0", 1: "1.0", 2: "2.0"}[module], "step": 5,
    }  # fmt: skip


def test_images_are_read_in_parts(run, images, tmp_path, monkeypatch):
    parts = []
    decode = embedding.decode_images
    monkeypatch.setattr(
        embedding, "decode_images", lambda files, *rest: parts.append(len(files)) or decode(files, *rest)
    )
    embed(run, images, tmp_path / "out.npz")
    assert parts == [1, 3, 3, 2]  # the first one tells the number of features
    embed(run, images, tmp_path / "out.parquet")
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(run, images, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    out.write_text("precious")
    with pytest.raises(UsageError, match="is there already; replace it with --overwrite"):
        embed(run, images, out)
    (images / "y.png").write_text("no image")
    with pytest.raises(DataError, match=r"y\.png is not a readable image"):
        embed(run, images, out, overwrite=True)
    assert out.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "images"}
    (images / "y.png").unlink()
    embed(run, images, out, overwrite=True)
    assert len(read(out)[0]) == 7


@pytest.mark.parametrize(
    ("out", "module", "message"),
    [
        ("out.csv", "last", r"--out: .*out\.csv' is not valid; expected a file name ending in \.parquet or \.npz"),
        ("out.npz", 3, "--module: 3 is not valid; expected last, or a number from 1 to 2"),
        ("out.npz", 0, "--module: 0 is not valid"),
        ("no/out.npz", "last", "no is no folder; expected one that is there"),
    ],
)
def test_wrong_calls_are_one_line(run, images, tmp_path, out, module, message):
    with pytest.raises(UsageError, match=message):
        embed(run, images, tmp_path / out, module)
    assert not (tmp_path / out).exists()
