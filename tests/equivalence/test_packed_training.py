"""A set that processes read from a packed folder trains what the same set in memory trains, bit for bit."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import small
from locallearn.config import AugmentConfig, DataConfig
from locallearn.data.packing import pack
from locallearn.training import runs
from locallearn.training.checkpoint import load
from locallearn.training.finished import open_run


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(86):
        path = root / ("train" if i < 70 else "test") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9 + i % 3, 14, 3), dtype=np.uint8)
        pixels[..., i % 2] //= 4
        Image.fromarray(pixels).save(path)
    pack(root, root / "packed", shard_bytes=8000)
    return root


def _config(root, **data):
    """Five steps an epoch, the last one of 6 images."""
    train = dataclasses.replace(small.TRAIN, batch_size=16)
    data = DataConfig("packed", root=str(root / "packed"), image_size=(8, 12), **data)
    return small.config(data=data, train=train)


def _weights(run):
    return load(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors


def _differences(run, other):
    a, b = _weights(run), _weights(other)
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


@pytest.mark.parametrize("runtime", ["inline", "threads"])
def test_held_streamed_and_resumed_in_an_epoch(packed, tmp_path, runtime):
    summary = runs.train(_config(packed), tmp_path / "held")
    streamed = dataclasses.replace(_config(packed, memory_gib=0, workers=2), runtime=runtime)
    with pytest.raises(small.Killed):
        runs.train(streamed, tmp_path / "streamed", small.KillAt(8))
    resumed = runs.resume(tmp_path / "streamed")
    assert _differences(tmp_path / "held", tmp_path / "streamed") == []
    assert resumed["accuracy"] == summary["accuracy"]
    assert resumed["accuracy"]["last_layer"] > 0.7
    assert open_run(tmp_path / "streamed").evaluate() == open_run(tmp_path / "held").evaluate()
    rows = open_run(tmp_path / "streamed").predict(packed / "test" / "b")
    assert len(rows) == 8


def test_other_parts_would_be_seen(packed, tmp_path):
    """The sibling that breaks it: parts that are cut out of whole images are not those of the padded ones."""
    runs.train(_config(packed), tmp_path / "held")
    changed = dataclasses.replace(_config(packed), augment=AugmentConfig(resized_crop=(0.5, 1.0)))
    runs.train(changed, tmp_path / "changed")
    assert _differences(tmp_path / "held", tmp_path / "changed") != []
