"""The rows of some groups, of modules that others wrote."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

import locallearn as ll
from locallearn.core.shard import shard
from locallearn.errors import ConfigError


class Depthwise(nn.Module):
    """A convolution by channel, then one of groups; as the first of a module its input has the channels of all."""

    def __init__(self, channels, own, *, groups=1, dense=True):
        super().__init__()
        self.by_channel = nn.Conv2d(channels, channels, 3, padding=1, groups=own or channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)

    def forward(self, x):
        return self.mix(self.norm(self.by_channel(x)))


def made(own=None):
    def build(given):
        stem = ll.Block("stem", 8, partial(Depthwise, 8, own))
        return (stem, *(ll.Block(f"b{i}", 8, partial(Depthwise, 8, own)) for i in range(3))), 1.0

    ll.backbones.add("depthwise", build)
    config = dataclasses.replace(ll.recipe("gn-dgl"), model="depthwise", depth=2, width=(2,), cuts=("b0",))
    return ll.build_network(config, ll.ImageShape(8, 8, 10))


@pytest.mark.parametrize("groups", [range(1), range(1, 2)])
@pytest.mark.parametrize("own", [None, 4, 2])  # groups of the convolution itself: every channel, or some together
def test_a_convolution_with_groups_of_its_own_is_shared_out(own, groups):
    module = next(iter(made(own)))
    x = torch.randn(4, 8, 8, 8)
    whole, part = module.blocks(x), shard(module, groups).blocks(x)
    torch.testing.assert_close(part, whole.unflatten(1, (2, 4))[:, groups.start])
    # a sibling of other rows is another network
    assert not torch.allclose(part, whole.unflatten(1, (2, 4))[:, 1 - groups.start])


def test_groups_that_cannot_be_shared_out_are_refused():
    module = next(iter(made()))
    module.blocks.append(nn.Conv2d(6, 6, 3, groups=3))
    with pytest.raises(
        ConfigError, match=r"mesh\.width: 2 .* a convolution of 3 groups, which cannot be shared out by 2"
    ):
        shard(module, range(1))
