"""Images that are not square, from a folder to a trained network, its predictions and its exports."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import locallearn as ll
from locallearn.config import DataConfig, RunConfig, digest, from_toml, to_toml
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.nodes import cost
from locallearn.data.datasets import load
from locallearn.data.folder import read_images
from locallearn.data.images import decode, fit
from locallearn.errors import ConfigError
from locallearn.training.export import export, load_exported
from locallearn.training.finished import open_run
from small import TRAIN, config

WIDE = ImageShape(3, (8, 16), 5)


def _draw(path, seed, height=10, width=26):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:, :, seed % 2] //= 4  # the class shows
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    for i in range(24):
        _draw(tmp_path / "images" / ("train" if i < 16 else "test") / "ab"[i % 2] / f"{i}.png", i)
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("method", "model"),
    [("gn-dgl", "tiny-resnet"), ("dgl", "tiny-vgg"), ("dgl", "vit-nano"), ("infopro", "resnet8"),
     ("predsim", "tiny-resnet"), ("mae", "vit-nano"), ("dgssl", "tiny-resnet")],
)  # fmt: skip
def test_every_kind_of_network_takes_them(method, model):
    run = config(method, 2, (2,) if method == "gn-dgl" else (1,), model=model)
    network = build_network(run, WIDE)
    assert network(torch.rand(2, 3, 8, 16)).shape[0] == 2
    wide, square = (cost(run, ImageShape(3, size, 5), batch_size=4) for size in ((8, 16), 8))
    # twice the pixels are more work than once, and the square is what one number always meant
    assert wide.e2e_macs > 1.5 * square.e2e_macs
    assert square.to_json() == cost(run, ImageShape(3, (8, 8), 5), batch_size=4).to_json()


def test_a_run_trains_predicts_and_exports_what_it_was_trained_on(root, tmp_path):
    run = config(data=DataConfig("folder", root=str(root), image_size=(8, 16)), train=TRAIN)
    dataset = load(run.data)
    assert dataset.train.images.shape == (16, 3, 8, 16)
    assert (dataset.augment.crop_padding, dataset.image_size) == (1, (8, 16))
    ll.train(run, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    names, images = read_images(root / "test", (8, 16), 3)
    predicted = opened.predict(root / "test")
    assert [row["image"] for row in predicted] == names
    export(opened, tmp_path / "exported", ["safetensors"])
    scores = load_exported(tmp_path / "exported")(images.float() / 255).softmax(-1)
    for row, found in zip(predicted, scores, strict=True):
        assert row["last_layer"] == dataset.classes[int(found.argmax())]
        assert row["last_layer_probability"] == pytest.approx(found.max().item(), abs=1e-5)
    with safe_open(tmp_path / "exported/network.safetensors", "pt") as file:
        described = json.loads(file.metadata()["locallearn"])
    assert described["image"] == {"channels": 3, "size": [8, 16], "classes": 2}
    fitting = {
        "resize": "cover", "interpolation": "bilinear", "antialias": True, "crop": "centre", "scale": 1 / 255,
        "size": [8, 16],
    }  # fmt: skip
    assert {key: described["preprocessing"][key] for key in fitting} == fitting


def test_fitting_covers_the_size_and_cuts_the_longer_side(tmp_path):
    stripes = np.zeros((8, 32, 3), np.uint8)
    stripes[:, 8:24] = (200, 100, 50)
    Image.fromarray(stripes).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", "a.png")
    assert np.array_equal(fit(image, (8, 16)), stripes[:, 8:24])
    assert np.array_equal(fit(image, (8, 32)), stripes)
    tall = fit(image, (8, 4))
    assert tall.shape == (8, 4, 3)
    assert np.array_equal(tall, stripes[:, 14:18])


def test_a_square_is_one_number_however_it_is_given():
    one, two = (RunConfig(data=DataConfig("folder", image_size=size)) for size in (16, (16, 16)))
    assert one == two
    assert digest(one) == digest(two)
    assert "image_size = 16\n" in to_toml(two)
    wide = RunConfig(data=DataConfig("folder", image_size=(16, 24)))
    assert from_toml(to_toml(wide)) == wide
    assert digest(wide) != digest(one)


@pytest.mark.parametrize("size", [3, (16, 3), (16,), (4, 5, 6), "16", 16.0, True])
def test_sizes_that_are_none_are_refused(size):
    with pytest.raises(ConfigError, match=r"data\.image_size: .* expected a whole number of at least 4, or two"):
        DataConfig("folder", image_size=size)


def test_patches_must_divide_both_sides():
    with pytest.raises(ConfigError, match="patch_size: 4 is not valid; expected a divisor of 10, the side"):
        build_network(config("dgl", 2, (1,), model="vit-tiny"), ImageShape(3, (8, 10), 5))
