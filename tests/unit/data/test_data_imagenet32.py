import pickle

import numpy as np
import pytest
import torch
from data_files import python2_pickle, random_images, write_folder

from locallearn.config import DataConfig
from locallearn.data.datasets import load
from locallearn.errors import DataError


def _batches(count=3):
    train, images, labels = {}, [], []
    for i in range(1, 11):
        pixels, some = random_images(count, 1000, seed=i)
        some = [label + 1 for label in some]
        # The mean image is there in the official files too.
        train[f"train_data_batch_{i}"] = pickle.dumps({"data": pixels, "labels": some, "mean": pixels.mean(0)})
        images.append(pixels)
        labels += some
    pixels, some = np.zeros((2, 3072), np.uint8), [1, 1000]
    return train, {"val_data": python2_pickle({"data": pixels, "labels": some})}, np.concatenate(images), labels


@pytest.mark.parametrize("places", [(".", "."), ("Imagenet32_train", "Imagenet32_val"), ("a/b", "c")])
def test_batches_are_joined_in_number_order_and_labels_start_at_0(tmp_path, places):
    train, val, pixels, labels = _batches()
    write_folder(tmp_path / places[0], train)
    write_folder(tmp_path / places[1], val)
    dataset = load(DataConfig("imagenet32", root=str(tmp_path)))
    assert torch.equal(dataset.train.images, torch.from_numpy(pixels.reshape(-1, 3, 32, 32)))
    assert dataset.train.labels.tolist() == [label - 1 for label in labels]
    assert dataset.test.labels.tolist() == [0, 999]
    assert (dataset.classes[0], dataset.classes[-1], len(dataset.classes)) == ("1", "1000", 1000)
    assert dataset.mean == (0.485, 0.456, 0.406)
    assert dataset.std == (0.229, 0.224, 0.225)
    assert (dataset.augment.crop_padding, dataset.augment.padding_mode, dataset.augment.flip) == (4, "constant", 0.5)


@pytest.mark.parametrize("label", [0, 1001])
def test_labels_outside_are_refused(tmp_path, label):
    train, val, _, _ = _batches()
    train["train_data_batch_10"] = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [label]})
    write_folder(tmp_path, {**train, **val})
    with pytest.raises(DataError, match=rf"training images: label {label - 1} is outside 0\.\.999"):
        load(DataConfig("imagenet32", root=str(tmp_path)))


def test_a_missing_batch_is_named(tmp_path):
    train, val, _, _ = _batches()
    del train["train_data_batch_7"]
    write_folder(tmp_path, {**train, **val})
    with pytest.raises(DataError, match="train_data_batch_7 is missing"):
        load(DataConfig("imagenet32", root=str(tmp_path)))


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(DataError, match=rf"train_data_batch_1 is not in {tmp_path} .*Imagenet32_train\.zip"):
        load(DataConfig("imagenet32", root=str(tmp_path)))
    write_folder(tmp_path, _batches()[0])
    with pytest.raises(DataError, match="ImageNet32 val_data is not in"):
        load(DataConfig("imagenet32", root=str(tmp_path)))
    with pytest.raises(DataError, match="ImageNet32 cannot be downloaded without a login; val_data is not in"):
        load(DataConfig("imagenet32", root=str(tmp_path), download=True))
