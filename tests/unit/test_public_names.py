"""The public names are what they say, also after everything has been imported."""

import inspect
import types

import pytest
import torch

import locallearn as ll
import small


@pytest.mark.parametrize("name", ll.__all__)
def test_every_public_name_has_a_docstring_and_is_no_module(name):
    thing = getattr(ll, name)
    assert not isinstance(thing, types.ModuleType)
    assert inspect.getdoc(thing)


def test_train_and_cost_are_functions_again_and_again(tmp_path):
    for seed in (1, 2):
        config = small.config("dgl", 2, (1,), seed=seed)
        assert ll.train(config, tmp_path / str(seed))["seed"] == seed
        assert ll.cost(config).training_speedup > 1


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = ll.trian  # type: ignore[attr-defined]


def test_an_editor_can_complete_the_names():
    assert set(dir(ll)) == set(ll.__all__)


def test_a_batch_needs_pixels_only_where_a_loss_does():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    batch = ll.Batch(images, labels)
    assert (batch.pixels is images, batch.step) == (True, 0)
    assert ll.Batch(images, labels, images / 2, 3).pixels is not images
