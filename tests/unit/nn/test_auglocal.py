"""AugLocal's heads against the paper's formula and against separate networks of every group."""

import pytest
import torch
from torch import nn

import reference
from locallearn.core.image_shape import ImageShape
from locallearn.errors import ConfigError
from locallearn.nn.auglocal import AugLocalHead, depth_of, sampled
from locallearn.nn.backbones import Place, build_backbone
from locallearn.nn.macs import dry_run

CIFAR = ImageShape(3, 32, 10)


def place(model, block, module, modules, size=32):
    """A module that ends in a backbone's block."""
    blocks = build_backbone(model, 3, size).blocks
    shape, shapes = (3, size, size), []
    for each in blocks:
        shape = dry_run(each.make(groups=1, dense=True), shape).shape
        shapes.append(shape)
    return Place(blocks, tuple(shapes), [each.name for each in blocks].index(block), module, modules)


def test_depths_fall_as_the_public_code_has_them():
    """``--aux_net_depth d --pyramid_coeff 0.5`` of 16 layers makes 16 - d modules."""
    assert [depth_of(k, 14, 2, 0.5) for k in range(1, 14)] == [2] * 12 + [2]  # round(1.5) is 2
    assert [depth_of(k, 13, 3, 0.5) for k in range(1, 13)] == [3] * 6 + [2] * 6
    assert [depth_of(k, 11, 5, 0.5) for k in range(1, 11)] == [5, 5, 5, 4, 4, 4, 4, 3, 3, 3]
    assert [depth_of(k, 5, 4, 1.0) for k in range(1, 5)] == [4, 3, 2, 1]
    assert depth_of(1, 2, 3, 0.5) == 3


def test_layers_are_sampled_evenly_up_to_the_last():
    assert sampled(0, 16, 2) == [8, 15]
    assert sampled(1, 16, 3) == [6, 10, 15]
    assert sampled(0, 16, 5) == [3, 6, 9, 12, 15]
    assert sampled(13, 16, 3) == [14, 15]
    assert sampled(15, 16, 3) == []


def shapes(head, size, channels):
    """Channels and side after every layer."""
    x, found = torch.zeros(2, channels, size, size), []
    for layer in head.layers:
        x = layer(x)
        found.append(tuple(x.shape[1:3]))
    return found


def test_layers_are_those_of_the_backbone():
    head = AugLocalHead((16, 32, 32), 10, place("resnet32", "stem", 1, 14), depth=5)
    assert shapes(head, 32, 16) == [(16, 32), (32, 16), (32, 16), (64, 8), (64, 8)]
    head = AugLocalHead((16, 32, 32), 10, place("resnet32", "1.4", 6, 14), depth=1)
    assert shapes(head, 32, 16) == [(64, 16)]  # a quarter of the channels, but one layer halves once
    head = AugLocalHead((128, 32, 32), 10, place("vgg6a", "conv1", 1, 4), depth=2)
    assert shapes(head, 32, 128) == [(512, 16), (512, 8)]  # its linear layer is no layer to copy
    head = AugLocalHead((256, 32, 32), 10, place("resnet50", "1.2", 1, 4), depth=3)
    assert [tuple(layer.conv1.weight.shape[:2]) for layer in head.layers] == [(128, 256), (256, 512), (512, 1024)]
    assert head.linear.inputs == 2048


def test_transformers_have_copies_too_and_vectors_none():
    head = AugLocalHead((64, 4, 4), 10, place("vit-nano", "block1", 1, 4, 8), depth=2)
    assert head(torch.randn(3, 64, 4, 4)).shape == (1, 3, 10)
    assert len(head.layers) == 2
    head = AugLocalHead((1024,), 10, place("vgg6a", "fc1", 5, 5))
    assert len(head.layers) == 0
    assert head(torch.randn(3, 1024)).shape == (1, 3, 10)


def test_a_head_counts_what_its_layers_say():
    """Two basic blocks of 64 channels on 8 x 8, pooling and the linear layer."""
    head = AugLocalHead((64, 8, 8), 10, place("resnet32", "3.1", 13, 14), depth=2)
    block = 64 * 64 * (2 * (9 * 64 + 2 + 1))
    assert dry_run(head, (64, 8, 8)).macs == 2 * block + 64 * 64 + 64 * 10 + 10


def test_transformers_have_no_groups():
    with pytest.raises(ConfigError, match=r"width: 2 is not valid; expected a divisor .* of block"):
        AugLocalHead((64, 4, 4), 10, place("vit-nano", "block1", 1, 4, 8), groups=2)


class PlainHead(nn.Module):
    """One group's head of tiny-resnet's later blocks 1.1 and 2.0, on what the group sees."""

    def __init__(self, seen, groups):
        super().__init__()
        self.first = reference.PlainBasicBlock(seen, 8 // groups, 8 // groups)
        self.second = reference.PlainBasicBlock(8 // groups, 8 // groups, 16 // groups, 2)
        self.linear = nn.Linear(16 // groups, 5)

    def forward(self, seen, own):
        y = self.first(seen, own)
        return self.linear(self.second(y, y).mean((2, 3)))


def both(groups, stop_gradient, spoil=None):
    """Outputs and gradients of a grouped head and of the loop, on the same features."""
    torch.manual_seed(0)
    head = AugLocalHead(
        (8, 8, 8), 5, place("tiny-resnet", "1.0", 1, 3, 8), groups=groups, stop_gradient=stop_gradient
    ).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0.1)
    plain = [PlainHead(8 if stop_gradient else 8 // groups, groups).double() for _ in range(groups)]
    names = {"first": "layers.0", "second": "layers.1", "linear": "linear"}
    for g, one in enumerate(plain):
        for name, value in one.state_dict().items():
            kind, rest = name.split(".", 1)
            full = head.state_dict()[f"{names[kind]}.{rest}"]
            value.copy_(full if full.dim() == 0 else full.chunk(groups)[g])
    if spoil is not None:
        spoil(head)
    x = torch.randn(6, 8, 8, 8, dtype=torch.float64)
    weights = torch.randn(groups, 6, 5, dtype=torch.float64)
    ours = x.clone().requires_grad_()
    out = head(ours)
    (out * weights).sum().backward()
    theirs = x.clone().requires_grad_()
    parts, outs = theirs.chunk(groups, 1), []
    for g, one in enumerate(plain):
        seen = torch.cat([p if i == g else p.detach() for i, p in enumerate(parts)], 1) if stop_gradient else parts[g]
        outs.append(one(seen, parts[g]))
    (torch.stack(outs) * weights).sum().backward()
    pairs = [(out, torch.stack(outs)), (ours.grad, theirs.grad)]
    gradients = dict(head.named_parameters())
    for g, one in enumerate(plain):
        for name, parameter in one.named_parameters():
            kind, rest = name.split(".", 1)
            pairs.append((gradients[f"{names[kind]}.{rest}"].grad.chunk(groups)[g], parameter.grad))
    return pairs


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_equals_a_head_of_every_group(groups, stop_gradient):
    for actual, expected in both(groups, stop_gradient):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_gradients_of_others_would_be_found():
    def leak(head):
        seeing = head.layers[0].conv1
        dense = nn.Conv2d(8, 8, 3, padding=1, bias=False).double()
        dense.weight = seeing.weight
        head.layers[0].conv1 = dense

    pairs = both(2, True, leak)
    torch.testing.assert_close(*pairs[0])
    assert (pairs[1][0] - pairs[1][1]).abs().max() > 1e-3
