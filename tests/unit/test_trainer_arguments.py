"""Wrong arguments of ``ll.Trainer``, its methods and those of networks are named in one line."""

import inspect

import pytest
import torch
from torch import nn

import locallearn as ll
from refusals import refused

BATCH = torch.rand(4, 8), torch.arange(4)


class Thing:
    """Of no type that anything takes."""


@pytest.fixture(scope="module")
def network():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    return ll.split(model, cuts=["1"], example=BATCH)


NAMES = {"checkpoint_every": "every_steps"}  # what it is called in the run's settings
ARGUMENTS = [name for name in inspect.signature(ll.Trainer).parameters if name != "network"]


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("value", [Thing(), -1, b"x"])
def test_arguments_of_a_trainer(name, value, network):
    refused(lambda: ll.Trainer(network, **{name: value}), NAMES.get(name, name))


def test_missing_and_unknown_arguments_of_a_trainer(network):
    refused(lambda: ll.Trainer(), "Trainer", "network")
    refused(lambda: ll.Trainer(network, bogus=1), "Trainer", "bogus")
    refused(lambda: ll.Trainer(network, 1), "Trainer", "too many positional arguments")
    refused(lambda: ll.Trainer(network, device="moon"), "device", "'moon'")


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "features"])
def test_arguments_of_its_methods(method, network):
    call = getattr(ll.Trainer(network), method)
    for loader in (3, None, Thing()):
        refused(lambda x=loader: call(x), "loader")
    for loader in ([3], [Thing()], "abc"):
        refused(lambda x=loader: call(x), "batch")
    refused(lambda: call(), method, "loader")
    refused(lambda: call([BATCH], bogus=1), method, "bogus")


def test_other_arguments_of_its_methods(network):
    trainer = ll.Trainer(network)
    for name in ("epochs", "evaluate_every"):
        for value in (Thing(), 0, -1, "1"):
            refused(lambda n=name, v=value: trainer.fit([BATCH], **{n: v}), name)
    refused(lambda: trainer.fit([BATCH], validation=3), "loader")
    for stage in (Thing(), 0, 3, "1"):
        refused(lambda v=stage: trainer.features([BATCH], v), "stage")


def test_arguments_of_a_networks_methods(network):
    for value in (Thing(), 3, None, {}):
        refused(lambda v=value: network.step(v), "batch")
        refused(lambda v=value: network.set_optimizers(v), "optimizer")
        refused(lambda v=value: network.load_training_state(v), "state", "network")
    for k in (0, 3, "1", None, Thing()):
        refused(lambda v=k: network.module_parameters(v), "k: ")
    refused(lambda: network.step(), "step", "batch")
    refused(lambda: network.set_optimizers(), "set_optimizers", "optimizer")


def test_what_fails_of_its_own_keeps_its_words(network):
    def broken(parameters):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="^mine$"):
        network.set_optimizers(broken)
