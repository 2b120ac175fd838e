"""Functions that users give are looked at before anything calls them."""

import pytest
import torch
from torch import nn

import locallearn as ll
from locallearn.arguments import takes

BATCH = (torch.rand(8, 4), torch.arange(8) % 3)


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def nothing():
    return None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": nothing}, r"optimizer is the function nothing\(\); expected a function of 1 argument"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; expected a function of 1 argument"),
        ({"head": nothing}, r"head is the function nothing\(\); expected .* a function of 1 argument"),
        ({"head": nn.Linear}, "head is the class Linear; expected .* a function of 1 argument"),
    ],
)
def test_split(given, message):
    with pytest.raises(ll.LocalLearnError, match=message):
        ll.split(model(), depth=2, example=BATCH, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"optimizer": nothing},
            "optimizer: .* makes one stage's optimizer of its parameters",
        ),
        ({"schedule": nothing}, "schedule: .* expected a function that makes one stage's schedule of its optimizer"),
        ({"schedule": torch.optim.lr_scheduler.StepLR}, "schedule: .* of its optimizer"),
    ],
)
def test_trainer(given, message):
    network = ll.split(model(), depth=2, example=BATCH)
    with pytest.raises(ll.LocalLearnError, match=message):
        ll.Trainer(network, **given)


@pytest.mark.parametrize("name", ["optimizer", "schedule"])
def test_what_they_give_is_looked_at(name):
    network = ll.split(model(), depth=2, example=BATCH)
    with pytest.raises(ll.LocalLearnError, match=f"{name}: 'str' is not valid; expected a function that gives a"):
        ll.Trainer(network, **{name: lambda _given: "adam"}).fit([BATCH], epochs=1)


def test_what_may_be_called_with_one_argument():
    assert takes(torch.optim.SGD, 1)
    assert takes(print, 1)
    assert takes(torch.relu, 1)  # written in C: it does not tell
    assert not takes(nothing, 1)
    assert not takes(torch.optim.lr_scheduler.StepLR, 1)


def test_a_loader_of_single_examples_is_no_loader(tmp_path):
    network = ll.split(model(), depth=2, example=BATCH)
    with pytest.raises(ll.LocalLearnError, match="gives examples one by one; expected batches"):
        ll.embed(network, torch.rand(8, 4), tmp_path / "features.parquet", module=1)
    assert not list(tmp_path.iterdir())
