"""Data sets of a user's own are looked at before anything is trained on them."""

import dataclasses

import numpy as np
import pytest
import torch

from locallearn.config import AugmentConfig, DataConfig
from locallearn.data.datasets import Dataset, ImageSet, load
from locallearn.data.inspection import inspected
from locallearn.errors import ConfigError, DataError


def images(count=6, *shape):
    return torch.zeros(count, *(shape or (3, 8, 8)), dtype=torch.uint8)


def labels(*values):
    return torch.tensor(values or (0, 1, 2, 0, 1, 2))


GOOD = Dataset(
    name="mine",
    train=ImageSet(images(), labels()),
    test=ImageSet(images(2), labels(0, 2)),
    classes=("a", "b", "c"),
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    augment=AugmentConfig(),
    source="nowhere",
)


def test_a_good_set_stays_as_it_is():
    found = inspected(GOOD)
    assert found.train.images.data_ptr() == GOOD.train.images.data_ptr()
    assert torch.equal(found.test.labels, GOOD.test.labels)


def test_labels_of_any_whole_numbers_become_int64_and_images_contiguous():
    train = ImageSet(images().transpose(2, 3), labels().to(torch.uint8))
    found = inspected(dataclasses.replace(GOOD, train=train, classes=["a", "b", "c"]))
    assert found.train.labels.dtype == torch.int64
    assert found.train.images.is_contiguous()
    assert found.classes == ("a", "b", "c")


NAN = torch.full((6, 3, 8, 8), float("nan"))


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (ImageSet(images().float(), labels()), r"images are float32 \[6, 3, 8, 8\]; expected uint8 \[N, C, H, W\]"),
        (ImageSet(NAN, labels()), r"images are float32 \[6, 3, 8, 8\], some NaN or infinite; expected uint8"),
        (ImageSet(images().short(), labels()), "images are int16"),
        (ImageSet(images(6, 8, 8), labels()), r"images are uint8 \[6, 8, 8\]"),
        (ImageSet(images(6, 3, 0, 8), labels()), r"images are uint8 \[6, 3, 0, 8\]"),
        (ImageSet(images(), labels().float()), r"labels are float32 \[6\]; expected int64 \[N\]"),
        (ImageSet(images(), labels() > 0), "labels are bool"),
        (ImageSet(images(), labels()[:, None]), r"labels are int64 \[6, 1\]"),
        (ImageSet(images(5), labels()), "5 images, but 6 labels"),
        (ImageSet(images(), labels(0, 1, 2, 3, 0, 0)), r"label 3 of image 3 is outside 0\.\.2"),
        (ImageSet(images(), labels(0, -1, 2, 0, 0, 0)), r"label -1 of image 1 is outside 0\.\.2"),
        (ImageSet(images(0), torch.zeros(0, dtype=torch.int64)), "there are none"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_images_and_labels_that_do_not_go_together(part, train, told):
    name = {"train": "training", "test": "test"}[part]
    with pytest.raises(DataError, match=rf"^data set 'mine', {name} images: .*{told}"):
        inspected(dataclasses.replace(GOOD, **{part: train}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"test": ImageSet(images(2, 3, 9, 8), labels(0, 1))}, "of different shapes: 3x8x8 and 3x9x8"),
        ({"test": ImageSet(images(2, 1, 8, 8), labels(0, 1))}, "of different shapes: 3x8x8 and 1x8x8"),
        ({"mean": (0.5,)}, "mean is .* expected 3 finite numbers, one a channel"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean is .*nan"),
        ({"std": (0.2, 0.0, 0.2)}, "std is .* expected 3 finite numbers above 0"),
        ({"std": (0.2, float("inf"), 0.2)}, "std is .*inf"),
        ({"classes": ()}, "classes are"),
    ],
)
def test_the_rest_must_fit_too(change, told):
    with pytest.raises(DataError, match=f"^data set 'mine': .*{told}"):
        inspected(dataclasses.replace(GOOD, **change))


def test_sets_that_are_loaded_are_looked_at():
    from locallearn.data.datasets import datasets

    bad = dataclasses.replace(GOOD, train=ImageSet(images(), labels(0, 1, 2, 3, 0, 0)))
    datasets.add("mine", lambda config: bad)
    with pytest.raises(DataError, match=r"label 3 of image 3 is outside"):
        load(DataConfig("mine"))


def test_what_is_no_tensor_is_named_where_the_set_is_made():
    with pytest.raises(ConfigError, match="ImageSet: images is of type ndarray; expected Tensor"):
        ImageSet(np.zeros((6, 3, 8, 8), np.uint8), labels())
    with pytest.raises(ConfigError, match="ImageSet: labels is of type list; expected Tensor"):
        ImageSet(images(), [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train": (images(), labels())}, "train is of type tuple; expected ImageSet"),
        ({"mean": None}, "mean is None; expected a sequence of float"),
        ({"classes": "abc"}, "classes is 'abc'; expected a sequence of str"),
        ({"classes": (0, 1, 2)}, "classes is of type tuple; expected a sequence of str"),
    ],
)
def test_a_set_of_other_parts_is_named_where_it_is_made(change, told):
    with pytest.raises(ConfigError, match=f"Dataset: {told}"):
        dataclasses.replace(GOOD, **change)
