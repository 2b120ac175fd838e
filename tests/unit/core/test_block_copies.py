"""AugLocal's and MAN's heads on users' own models: copies of the model's blocks, against plain code."""

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
import user_models
from locallearn.config import ObjectiveConfig
from locallearn.errors import ConfigError
from locallearn.nn.momentum import MomentumHead


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Residual(nn.Module):
    """A block that keeps the features' form."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.layer(x))


def network(head, options=None, blocks=6, cuts=("1", "3"), **changes):
    torch.manual_seed(0)
    model = nn.Sequential(*(Residual() for _ in range(blocks)), nn.Linear(6, 5))
    example = torch.randn(8, 6), torch.arange(8) % 5
    settings = ObjectiveConfig(head=head, head_options=options or {})
    chosen = {"cuts": list(cuts), "optimizer": sgd, "settings": settings, **changes}
    return ll.split(model, example=example, head=head, **chosen), example


def test_the_follower_is_a_moving_average_of_the_next_stages_first_block():
    split, (images, labels) = network("momentum", {"momentum": 0.9, "of": "0c1f"})
    blocks, first = cast(Any, split.model), next(iter(split)).objective.head
    assert isinstance(first, MomentumHead)
    average = blocks[2].layer.weight.detach().clone()
    for _ in range(3):
        weight = blocks[2].layer.weight.detach().clone()
        average = 0.9 * average + 0.1 * weight
        bias, head = copy.deepcopy(first.bias), copy.deepcopy(first.head)
        follower = copy.deepcopy(blocks[2])
        follower.layer.weight.data, follower.layer.bias.data = average, self_average(first, blocks[2], 0.9)
        with torch.no_grad():
            features = blocks[1](blocks[0](images))
            expected = F.cross_entropy(head(bias(features) + follower(features))[0], labels)
        found = split.step((images, labels))["loss/1"]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(dict(first.follower.named_buffers())["block.layer.weight"], average)
    assert not torch.equal(blocks[2].layer.weight, average)


def self_average(head, block, momentum):
    """What the follower's bias becomes at this step."""
    own = dict(head.follower.named_buffers())["block.layer.bias"]
    return momentum * own + (1 - momentum) * block.layer.bias.detach()


def test_the_sampled_blocks_of_a_uniform_list_are_copied_with_weights_of_their_own():
    """Six blocks; the stage ends with number 1, d = 2: numbers round(1 + 4 j / 2) = 3 and 5."""
    split, (images, labels) = network("auglocal", {"layers": 2, "slope": 0.0})
    blocks, head = cast(Any, split.model), cast(Any, next(iter(split)).objective.head)
    copies = [layer for layer in head if hasattr(layer, "block")]
    assert [type(each.block) for each in copies] == [Residual, Residual]
    with torch.no_grad():
        x = blocks[1](blocks[0](images))
        for each in copies:
            x = x + torch.tanh(F.linear(x, each.block.layer.weight, each.block.layer.bias))
        expected = F.cross_entropy(head[-1](x)[0], labels)
    torch.testing.assert_close(split.step((images, labels))["loss/1"], expected)
    assert not torch.equal(copies[0].block.layer.weight, blocks[3].layer.weight)
    one, two = (split.stages[k] for k in (0, 1))
    assert len([layer for layer in cast(Any, two).objective.head if hasattr(layer, "block")]) == 2  # 4 and 5 are left
    assert not {id(p) for p in one.parameters()} & {id(p) for p in blocks.parameters()}


def test_where_sampled_blocks_take_other_features_a_convolution_brings_them():
    example = user_models.images()
    torch.manual_seed(0)
    split = ll.split(user_models.ResNet(), example=example, cuts=["layer1.0"], head="auglocal", optimizer=sgd)
    head = cast(Any, next(iter(split)).objective.head)
    kinds = [type(getattr(layer, "block", layer)).__name__ for layer in head]
    assert kinds.count("Sequential") == 1 or kinds.count("Block") >= 1
    first = split.step(example)["loss/1"]
    assert [split.step(example)["loss/1"] for _ in range(5)][-1] < first


@pytest.mark.parametrize(
    "head", ["auglocal", "momentum", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 128))]
)
def test_what_an_objective_has_beside_such_a_head_is_drawn(head):
    """InfoPro's own decoder: memory that nobody had written made losses of 1e27."""
    (images, labels), drawn = user_models.images(), []
    batch = images.sigmoid(), labels
    for _ in range(2):
        torch.manual_seed(0)
        split = ll.split(user_models.ResNet(), example=batch, cuts=["layer1.0"], head=head, objective="infopro")
        drawn.append(next(cast(Any, next(iter(split))).objective.decoder.parameters()))
    assert torch.equal(*drawn)
    assert 0 < drawn[0].abs().max() <= 1


@pytest.mark.parametrize("head", ["auglocal", "momentum"])
def test_modules_at_once_train_the_same_and_a_step_goes_on_from_there(head):
    def trained(runtime, steps):
        split, example = network(head)
        ll.Trainer(split, runtime=runtime, threads=1, optimizer=sgd).fit([example] * steps)
        return split, example

    (inline, example), (threads, _) = trained("inline", 3), trained("threads", 3)
    for _ in range(2):
        weights = threads.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in inline.state_dict().items())
        inline.set_optimizers(sgd)
        threads.set_optimizers(sgd)
        inline.step(example)
        threads.step(example)


def test_what_flows_back_is_counted():
    split, example = network("momentum")
    found = ll.cost(split, example)
    block = (36 + 6) * 4
    assert sum(each.n_bytes for each in found.reads if (each.reader, each.owner) == (1, 2)) == block
    plain, _ = network("0c1f")
    assert found.traffic_bytes == ll.cost(plain, example).traffic_bytes + 2 * block
    assert found.modules[0].head_macs > ll.cost(plain, example).modules[0].head_macs + 2 * 36


class Two(nn.Module):
    """A block that needs more than features."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, scale):
        return self.layer(x) * scale


class Scaled(nn.Module):
    """A model whose blocks do, each something of its own."""

    def __init__(self):
        super().__init__()
        self.blocks, self.last = nn.ModuleList(Two() for _ in range(3)), nn.Linear(6, 5)

    def forward(self, x):
        for block in self.blocks:
            x = block(x, torch.full((6,), 2.0))
        return self.last(x)


@pytest.mark.parametrize("head", ["auglocal", "momentum"])
def test_what_cannot_be_copied_is_one_line(head):
    expected = "1 with head momentum" if head == "momentum" else "1: only modules of dense convolutions"
    with pytest.raises(ConfigError, match=rf"width: 2 is not valid; expected {expected}"):
        network(head, width=2)
    vectors = torch.randn(8, 6), torch.arange(8) % 5
    with pytest.raises(ConfigError, match=rf"head: '{head}' is not valid; expected another head: blocks.1 takes"):
        ll.split(Scaled(), example=vectors, cuts=["blocks.0"], head=head)
    with pytest.raises(ConfigError, match=rf"tokens: 'mean' is not valid; expected all with head {head}"):
        ll.split(user_models.Transformer(), example=user_models.sequences(), depth=2, head=head, tokens="mean")
