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


class Normed(nn.Module):
    """A grouped convolution and another layer."""

    def __init__(self, layer, *, groups=1, dense=True):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(8, 8, 3, padding=1, groups=1 if dense else groups), layer()

    def forward(self, x):
        return self.layer(self.conv(x))


class Scaled(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return x * self.weight


def with_layer(layer):
    ll.backbones.add(
        "normed",
        lambda _: ((ll.Block("a", 8, partial(Normed, layer)), ll.Block("b", 8, partial(Normed, layer))), 1.0),
    )
    config = dataclasses.replace(ll.recipe("gn-dgl"), model="normed", depth=2, width=(2,), cuts=("a",))
    module = next(iter(ll.build_network(config, ll.ImageShape(8, 8, 10))))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


LAYERS = {
    "group norm": partial(nn.GroupNorm, 4, 8),
    "instance norm": partial(nn.InstanceNorm2d, 8, affine=True, track_running_stats=True),
    "prelu": partial(nn.PReLU, 8),
    "scale": partial(Scaled, 8, 1, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_others_compute_in_a_part_what_they_do_in_the_whole(name):
    module, x = with_layer(LAYERS[name]), torch.randn(4, 8, 8, 8)
    whole = module.blocks(x).unflatten(1, (2, 4))
    for group in range(2):
        part = shard(module, range(group, group + 1)).blocks(x)
        torch.testing.assert_close(part, whole[:, group])
        assert not torch.allclose(part, whole[:, 1 - group])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (partial(nn.GroupNorm, 1, 8), "a normalisation of 1 groups, which cannot be shared out by 2"),
        (partial(Scaled, 1, 8, 1, 1), r"parameter Scaled\.weight \(1 x 8 x 1 x 1\), of which 2 groups have no rows"),
        (Scaled, r"parameter Scaled\.weight \(one number\), of which 2 groups have no rows"),
        (partial(nn.LayerNorm, (8, 8, 8)), "a LayerNorm, which looks at the channels of all groups"),
        (
            lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1, groups=2)),
            "a SpectralNorm, which looks at the channels of all groups",
        ),
        (partial(nn.ConvTranspose2d, 8, 8, 1, groups=2), "a ConvTranspose2d, whose groups are not shared out"),
    ],
)
def test_layers_of_others_that_cannot_be_shared_out_are_refused(layer, message):
    with pytest.raises(ConfigError, match=r"mesh\.width: 2 .*" + message):
        shard(with_layer(layer), range(1))
