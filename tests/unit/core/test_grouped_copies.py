"""AugLocal's heads of a user's own model in groups: each group's copies are a slice, against plain code."""

import copy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.config import ObjectiveConfig
from locallearn.core.grouped_copies import Grouping
from locallearn.errors import ConfigError


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        return (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())) + self.skip(x)).relu()


class Shuffled(Block):
    """Mixes channels on its way."""

    def forward(self, x):
        return super().forward(x).roll(1, 1)


def example(n=6):
    torch.manual_seed(0)
    return torch.randn(n, 3, 6, 6), torch.arange(n) % 5


def network(last: Any = Block, width=2, **objective):
    torch.manual_seed(0)
    layers = [Block(3, 4), Block(4, 4), Block(4, 8), last(8, 8)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    settings = ObjectiveConfig(head="auglocal", head_options={"layers": 2, "slope": 0.0}, **objective)
    return ll.split(
        model, example=example(), cuts=["0", "1"], width=width, head="auglocal", settings=settings, optimizer=sgd
    )


def copies_of(split, k):
    head = cast(Any, split.stages[k].objective.head)
    return [layer.block for layer in head if hasattr(layer, "block")], head[-1]


def in_groups(layer, x, groups, sees):
    """A convolution in groups, each computed by itself; with ``sees`` it has all channels, the others detached."""
    weight = layer.conv.weight if sees else layer.weight
    own_rows, parts, found = len(weight) // groups, x.chunk(groups, 1), []
    for g in range(groups):
        seen = torch.cat([part if i == g else part.detach() for i, part in enumerate(parts)], 1) if sees else parts[g]
        rows = slice(g * own_rows, (g + 1) * own_rows)
        bias = None if layer.bias is None else layer.bias[rows]
        found.append(F.conv2d(seen, weight[rows], bias, padding=weight.shape[-1] // 2))
    return torch.cat(found, 1)


def block_in_groups(block, x, first, groups=2):
    y = block.norm1(in_groups(block.conv1, x, groups, first)).relu()
    y = block.norm2(in_groups(block.conv2, y, groups, False))
    return (y + in_groups(block.skip, x, groups, first)).relu()


def test_every_groups_scores_and_gradients_are_those_of_its_own_slices():
    split = network()
    blocks, last = copies_of(split, 0)
    assert [tuple(block.conv2.weight.shape) for block in blocks] == [(8, 4, 3, 3)] * 2
    assert tuple(blocks[0].conv1.conv.weight.shape) == (8, 4, 3, 3)  # sees all channels of the four
    features = torch.randn(4, 4, 6, 6, requires_grad=True)
    head = cast(Any, split.stages[0].objective.head).train()
    found = head(features)
    x = features
    for i, block in enumerate(copy.deepcopy(blocks)):
        x = block_in_groups(block, x, first=i == 0)
    expected = copy.deepcopy(last)(x)
    torch.testing.assert_close(found, expected)
    for g in range(2):
        mine, plain = (
            torch.autograd.grad(y[g].square().sum(), features, retain_graph=True)[0] for y in (found, expected)
        )
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
        assert not mine.chunk(2, 1)[1 - g].any()


def test_groups_that_do_not_see_each_other_have_grouped_convolutions_alone():
    blocks, _ = copies_of(network(stop_gradient=False, diversity_weight=0.0), 0)
    assert {layer.groups for block in blocks for layer in block.modules() if isinstance(layer, nn.Conv2d)} == {2}


def test_it_trains_on_threads_what_it_trains_inline():
    weights = {}
    for runtime in ("inline", "threads"):
        split = network()
        ll.Trainer(split, runtime=runtime, threads=1, optimizer=sgd).fit([example()] * 3)
        weights[runtime] = split.state_dict()
    assert all(torch.equal(value, weights["threads"][name]) for name, value in weights["inline"].items())
    fresh = network().state_dict()
    moved = {name for name, value in weights["inline"].items() if not torch.equal(value, fresh[name])}
    assert any("objective.head" in name and "conv1.conv.weight" in name for name in moved)
    assert ll.cost(network(), example()).modules[0].shared_bytes == 6 * 2 * 36 * 4


def test_what_cannot_be_in_groups_is_one_line():
    with pytest.raises(ConfigError, match="1 with head auglocal where a block that it copies mixes channels; 1c2f"):
        network(Shuffled)

    def odd(inputs, outputs):
        block = Block(inputs, outputs)
        block.norm1 = cast(Any, nn.GroupNorm(2, outputs))
        return block

    expected = "width: 2 is not valid; expected 1 with head auglocal whose copy has GroupNorm 3.norm1"
    with pytest.raises(ConfigError, match=expected):
        network(odd)
    expected = r"where 9 \(4 -> 5 channels, 1 groups\) does not divide by it"
    with pytest.raises(ConfigError, match=expected):
        Grouping("auglocal", 2, True, 1).of_convolution(nn.Conv2d(4, 5, 3, padding=1), "9", True)
    with pytest.raises(ConfigError, match="where 9 is no square convolution padded by half its kernel"):
        Grouping("auglocal", 2, True, 1).of_convolution(nn.Conv2d(4, 4, 3), "9", True)
