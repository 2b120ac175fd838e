import dataclasses
import importlib.util
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from locallearn.config import AugmentConfig, DataConfig
from locallearn.data import datasets as module
from locallearn.data.datasets import data_root, datasets, folders, image_set, load, resolve_augment
from locallearn.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def digits():
    return load(DataConfig())


def test_digits_are_those_of_scikit_learn_split_once(digits):
    images, labels = load_digits(return_X_y=True)
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.test.images.shape == (360, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert digits.train.images.is_contiguous()
    assert digits.test.labels.bincount().tolist() == [36] * 10
    # Every image of the original is in exactly one half, with its label, and pixels are multiples of 15.
    both = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    ours = sorted((*row, label) for row, label in zip(both.tolist(), _labels(digits), strict=True))
    theirs = sorted((*(row * 15).astype(int).tolist(), int(label)) for row, label in zip(images, labels, strict=True))
    assert ours == theirs
    assert both.max() == 240


def _labels(dataset):
    return torch.cat([dataset.train.labels, dataset.test.labels]).tolist()


def test_digits_constants_are_the_moments_of_the_training_images(digits):
    pixels = digits.train.images.double() / 255
    assert digits.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-8)
    assert digits.std[0] == pytest.approx(pixels.std(correction=0).item(), abs=1e-8)


def test_digits_facts(digits):
    assert digits.name == "digits"
    assert digits.classes == tuple("0123456789")
    assert (digits.channels, digits.image_size) == (1, 8)
    assert digits.source == "digits of scikit-learn (8 x 8, grey)"
    assert (digits.augment.crop_padding, digits.augment.padding_mode, digits.augment.flip) == (1, "constant", 0.0)


def test_first_digits_are_a_fair_subset(digits):
    assert digits.train.labels[:100].bincount().min() >= 8


def test_limits_keep_the_first_images(digits):
    limited = load(DataConfig(train_limit=7, test_limit=3))
    assert torch.equal(limited.train.images, digits.train.images[:7])
    assert torch.equal(limited.train.labels, digits.train.labels[:7])
    assert torch.equal(limited.test.images, digits.test.images[:3])
    # A view would keep all images in memory.
    assert limited.train.images.untyped_storage().nbytes() == 7 * 64


def test_limits_above_the_size_mean_all():
    dataset = load(DataConfig(train_limit=10**9, test_limit=10**9))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (1437, 360)


def test_one_training_image_is_too_few():
    with pytest.raises(DataError, match="at least two images, there are 1"):
        load(DataConfig(train_limit=1))


def test_unknown_name_lists_near_ones():
    with pytest.raises(ConfigError, match=r"data\.name: 'cifar1' .*cifar10"):
        load(DataConfig(name="cifar1"))


def test_all_sets_are_registered():
    assert list(datasets) == ["cifar10", "cifar100", "digits", "folder", "imagenet32", "packed"]


def test_image_size_of_another_size_is_refused():
    assert load(DataConfig(image_size=8)).image_size == 8
    with pytest.raises(ConfigError, match=r"data\.image_size: 32 is not valid; expected 8"):
        load(DataConfig(image_size=32))


def test_errors_of_the_system_become_one_line(monkeypatch, tmp_path):
    """The digits are in a file of scikit-learn's, which is missing here."""
    spec = ModuleSpec("sklearn", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    with pytest.raises(DataError, match=rf"digits: .*{tmp_path}"):
        load(DataConfig())


def test_root_is_searched_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALLEARN_DATA", str(tmp_path / "env"))
    assert data_root(DataConfig(root=str(tmp_path / "given"))) == tmp_path / "given"
    assert data_root(DataConfig()) == tmp_path / "env"
    monkeypatch.delenv("LOCALLEARN_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root(DataConfig()) == tmp_path / ".cache/locallearn/data"
    assert data_root(DataConfig(root="~/x")) == tmp_path / "x"


def test_folders_are_nearest_first_and_two_levels_deep(tmp_path):
    (tmp_path / "b/c/d").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")
    assert folders(tmp_path) == [tmp_path, tmp_path / "a", tmp_path / "b", tmp_path / "b/c"]
    assert folders(tmp_path / "nothing") == []


def test_resolve_fills_only_what_is_open(digits):
    assert resolve_augment(AugmentConfig(), digits) == digits.augment
    mine = AugmentConfig(crop_padding=0, flip=0.25, brightness=0.1)
    resolved = resolve_augment(mine, digits)
    assert (resolved.crop_padding, resolved.padding_mode, resolved.flip) == (0, "constant", 0.25)
    assert resolved.brightness == 0.1
    assert resolve_augment(resolved, digits) == resolved


def test_resolve_where_the_data_set_has_no_custom(digits):
    plain = dataclasses.replace(digits, augment=AugmentConfig())
    assert resolve_augment(AugmentConfig(), plain) == AugmentConfig(crop_padding=0, padding_mode="constant", flip=0.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AugmentConfig(crop_padding=8), r"augment\.crop_padding: 8 .*less than .*digits are wide \(8\)"),
        (AugmentConfig(jitter=0.5), r"augment\.jitter: 0\.5 .*digits are grey"),
        (AugmentConfig(grey=0.2), r"augment\.grey: 0\.2 .*digits are grey"),
    ],
)
def test_resolve_refuses_what_does_not_fit(digits, config, message):
    with pytest.raises(ConfigError, match=message):
        resolve_augment(config, digits)


def test_image_set_joins_in_order_and_checks_labels():
    first = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1)
    parts = [(first, np.array([0, 1])), (first + 100, np.array([2, 0]))]
    joined = image_set(parts, 3, "here")
    assert joined.images.flatten().tolist() == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104, 105]
    assert joined.labels.tolist() == [0, 1, 2, 0]
    assert parts == []
    with pytest.raises(DataError, match=r"here: label 2 is outside 0\.\.1"):
        image_set([(first, np.array([0, 2]))], 2, "here")
    with pytest.raises(DataError, match=r"here: label -1 is outside 0\.\.1"):
        image_set([(first, np.array([0, -1]))], 2, "here")
    with pytest.raises(DataError, match="here: there are no images"):
        image_set([], 2, "here")


def test_a_split_that_followed_the_seed_would_be_seen(digits, monkeypatch):
    """The planted error: another spread of the test images changes what the tests above compare."""
    spread = np.linspace
    monkeypatch.setattr(np, "linspace", lambda start, stop, count: spread(start, stop - 1, count))
    assert not torch.equal(module.load(DataConfig()).test.images, digits.test.images)
