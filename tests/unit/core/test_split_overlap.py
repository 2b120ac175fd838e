"""Overlapping stages of users' own models: gradients cross one cut and no other, and what that costs."""

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
import user_models
from locallearn.costs.memory import ActivationMeter
from locallearn.errors import ConfigError, UsageError


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def network(overlap=1, **changes):
    """Three parts; the second begins with a layer that writes into what it is given."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
    last = nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    example = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    settings = {"cuts": ["0", "1"], "head": "0c1f", "overlap": overlap, "optimizer": sgd, **changes}
    return ll.split(nn.Sequential(first, second, last), example=example, **settings), example


def slow_gradients(split, example):
    """Of every part of the model: its own loss and the next one's, each from passes through copies of two parts."""
    images, labels = example
    parts, given = list(cast(Any, split.model)), [images]
    heads = [stage.objective.head for stage in list(split)[:2]]
    with torch.no_grad():
        for part in copy.deepcopy(parts):
            given.append(part(given[-1].clone()))

    def loss_of(k, features):
        if k == 2:
            return F.cross_entropy(features, labels)
        return F.cross_entropy(copy.deepcopy(heads[k])(features)[0], labels)

    found = []
    for k, part in enumerate(parts):
        own = copy.deepcopy(part)
        features = own(given[k].clone())
        total = loss_of(k, features)
        if k < 2:
            total = total + loss_of(k + 1, copy.deepcopy(parts[k + 1])(own(given[k].clone()).clone()))
        total.backward()
        found.append([p.grad for p in own.parameters()])
    return found


def same(split, expected):
    found = [[p.grad for p in part.parameters()] for part in cast(Any, split.model)]
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6)
        for mine, others in zip(found, expected, strict=True)
        for a, b in zip(mine, others, strict=True)
    )


@pytest.mark.parametrize("overlap", [1, 0])
def test_gradients_are_those_of_a_loop_over_pairs(overlap):
    split, example = network(overlap)
    split.train()
    expected = slow_gradients(split, example)
    split.step(example)
    assert same(split, expected) == bool(overlap)


def test_every_stage_is_updated_and_the_trainer_does_the_same():
    split, example = network()
    before = copy.deepcopy(split.state_dict())
    for _ in range(2):
        split.step(example)
    by_hand = split.state_dict()
    trained, _ = network()
    ll.Trainer(trained, optimizer=sgd).fit([example] * 2)
    assert all(torch.equal(value, by_hand[name]) for name, value in trained.state_dict().items())
    assert not any(torch.equal(by_hand[name], before[name]) for name in before if name.endswith("weight"))


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_models_with_skips_and_tuples_train(name):
    torch.manual_seed(0)
    model = user_models.ResNet() if name == "resnet" else user_models.Transformer()
    batch = user_models.images() if name == "resnet" else user_models.sequences()
    split = ll.split(model, example=batch, depth=3, overlap=1, optimizer=sgd)
    found = [split.step(batch) for _ in range(6)]
    assert found[-1]["loss/1"] < found[0]["loss/1"]
    assert all(value.isfinite() for value in found[-1].values())


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_stages_at_once_train_the_same(name):
    weights = []
    batch = user_models.images() if name == "resnet" else user_models.sequences()
    for runtime in ("inline", "threads"):
        torch.manual_seed(0)
        model = user_models.ResNet() if name == "resnet" else user_models.Transformer()
        split = ll.split(model, example=batch, depth=3, overlap=1, optimizer=sgd)
        ll.Trainer(split, runtime=runtime, threads=1, optimizer=sgd).fit([batch] * 4)
        weights.append(split.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class Tied(nn.Module):
    """Its last layer reads the weights of its first."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(7, 5), nn.Linear(5, 5)

    def forward(self, ids):
        return torch.tanh(self.mix(self.embed(ids))) @ self.embed.weight.T


def test_weights_that_wait_for_the_stage_that_reads_them_are_refused_on_threads():
    ids = torch.randint(7, (4, 3))
    split = ll.split(Tied(), example=(ids, ids), cuts=["embed"], objective="token", overlap=1, optimizer=sgd)
    expected = "expected inline with overlap 1 where stage 2 reads weights that stage 1 trains"
    with pytest.raises(ConfigError, match=expected):
        ll.Trainer(split, runtime="threads", threads=1).fit([(ids, ids)])


def test_memory_is_that_of_two_stages_and_costs_are_counted():
    peaks = {}
    for overlap in (0, 1):
        split, example = network(overlap)
        with ActivationMeter(split.parameters()) as meter:
            split.step(example)
        peaks[overlap] = meter.peak_bytes
    assert peaks[1] > peaks[0]
    plain, over = (ll.cost(*network(overlap)) for overlap in (0, 1))
    assert [m.returned_bytes for m in plain.modules] == [0, 0, 0]
    assert [m.returned_bytes for m in over.modules] == [0, 6 * 4 * 64 * 4, 6 * 8 * 16 * 4]
    one, two, _ = (
        after.step_macs - before.step_macs for before, after in zip(plain.modules, over.modules, strict=True)
    )
    block = 4 * 9 * 8 * 16
    assert one == 3 * 9 * 4 * 64  # its weights' gradients once more; what is given to it is the images
    assert two == block + block  # the gradient that it returns, and its weights' gradients once more
    assert over.modules[1].activation_bytes > plain.modules[1].activation_bytes


def test_what_cannot_overlap_is_one_line():
    with pytest.raises(ConfigError, match="devices: .* is not valid; expected None with overlap 1"):
        network()[0].place(["cpu", "cpu"])
    with pytest.raises(ConfigError, match="overlap: 2 is not valid; expected 0, or 1"):
        network(overlap=2)
    with pytest.raises(ConfigError, match="overlap: 1 is not valid; expected 0 with depth 1"):
        network(cuts=None, depth=1)
    split, example = network()
    with pytest.raises(UsageError, match="no autocast to fp16 with overlap 1"), torch.autocast("cpu", torch.float16):
        split.step(example)
