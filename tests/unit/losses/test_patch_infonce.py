"""Greedy InfoMax: patches encoded one by one, their loss against a slow loop, and where it is refused."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import locallearn as ll
import small
from locallearn.config import ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.nodes import cost
from locallearn.errors import ConfigError
from locallearn.losses.patch_infonce import PatchInfoNCE, PatchInfoNCEOptions, patch_of
from locallearn.nn.tiles import ByTile, Tiles, patches_along, tile_means

IMAGE = ImageShape(3, 16, 5)


def network_of(depth=2, model="tiny-resnet", **changes):
    return build_network(small.config("greedy-infomax", depth, (1,), model=model, **changes), IMAGE)


def slow_loss(objective, features, rows, columns, seed):
    """The paper's loss, prediction by prediction, with the same draws."""
    torch.manual_seed(seed)
    height, width = features.shape[2] // rows, features.shape[3] // columns
    z = {}
    for b in range(len(features)):
        for y in range(rows):
            for x in range(columns):
                tile = features[b, :, y * height : (y + 1) * height, x * width : (x + 1) * width]
                z[b, y, x] = tile.flatten(1).mean(1)
    total = torch.zeros((), dtype=features.dtype)
    for s, layer in enumerate(objective.predict, 1):
        weight, gap = layer.weight[:, :, 0, 0], s + 1
        below = [(b, y, x) for b in range(len(features)) for y in range(gap, rows) for x in range(columns)]
        drawn = torch.randint(len(below), (len(features), rows - gap, columns, objective.negatives))
        losses = []
        for b, y, x in [(b, y, x) for b in range(len(features)) for y in range(rows - gap) for x in range(columns)]:
            right = torch.exp((weight @ z[b, y + gap, x]) @ z[b, y, x])
            wrong = [torch.exp((weight @ z[below[j]]) @ z[b, y, x]) for j in drawn[b, y, x].tolist()]
            losses.append(-torch.log(right / (right + torch.stack(wrong).sum())))
        total = total + torch.stack(losses).mean()
    return total / len(objective.predict)


@pytest.mark.parametrize(("steps", "grid"), [(1, (3, 3)), (3, (5, 4))])
def test_the_loss_and_its_gradient_are_those_of_a_slow_loop(steps, grid):
    torch.manual_seed(0)
    objective = PatchInfoNCE(4, grid, steps, negatives=3).double()
    features = torch.randn(2, 4, 2 * grid[0], 2 * grid[1], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    loss = objective(features, small.batch_of(features, torch.zeros(2))).total
    expected = slow_loss(objective, features, *grid, seed=7)
    torch.testing.assert_close(loss, expected[None])
    (found,), (right,) = (torch.autograd.grad(each.sum(), features) for each in (loss, expected))
    torch.testing.assert_close(found, right)
    other = slow_loss(objective, features, *grid, seed=8)
    assert not torch.allclose(loss, other[None])


def test_a_network_is_that_on_a_batch_of_patches():
    """Features of every patch are those of the blocks on the patches as a batch of their own."""
    torch.manual_seed(0)
    network, images = network_of(), torch.randn(2, 3, 16, 16)
    patches = images.unfold(2, 4, 2).unfold(3, 4, 2).permute(0, 2, 3, 1, 4, 5)
    assert patches.shape[1:3] == (7, 7)
    x = patches.flatten(0, 2)
    for layer in network.modules():
        if isinstance(layer, ByTile):
            x = layer.block(x)
    expected = x.mean((2, 3)).unflatten(0, (2, 7, 7)).permute(0, 3, 1, 2)
    *_, (module, out) = network.passed(images)
    torch.testing.assert_close(tile_means(module.features(out), (7, 7)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network(images), expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert not network.has_classifier


def test_nothing_of_one_patch_reaches_another():
    network = network_of().eval()
    images = torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[:, :, :2, :2] += 1.0  # is in the first patch alone
    *_, (module, out) = network.passed(images)
    *_, (_, other) = network.passed(changed)
    moved = tile_means((module.features(out) - module.features(other)).abs(), (7, 7)).sum(1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[0, 0]]


def test_patches_overlap_by_half():
    assert [patches_along(side, patch) for side, patch in ((64, 16), (32, 8), (8, 2), (8, 4))] == [7, 7, 7, 3]
    row = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 2, 6)
    assert Tiles(2)(row)[0, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_it_learns_and_its_cost_counts_every_patch():
    torch.manual_seed(0)
    network = network_of().train()
    network.set_optimizers(lambda parameters: torch.optim.Adam(parameters, 0.01))
    batch = torch.rand(8, 3, 16, 16).cumsum(2).cumsum(3) / 64, torch.zeros(8, dtype=torch.long)
    found = [network.step(batch)["loss/2"] for _ in range(40)]
    assert found[-1] < found[0] < 3 * math.log(17)
    config = small.config("greedy-infomax", 2, (1,), model="tiny-resnet")
    one = cost(config, IMAGE).modules[0].block_macs
    plain = cost(small.config("dgl", 2, (1,), model="tiny-resnet"), ImageShape(3, 4, 5)).modules[0].block_macs
    assert one == 49 * plain


def test_a_vgg_whose_linear_layers_are_as_wide_as_a_patch_needs():
    config = dataclasses.replace(ll.recipe("vgg6a-greedy-infomax"), model="vgg6ax0.125")
    network = ll.build_network(config, ImageShape(3, 32, 10))
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    draw = torch.Generator().manual_seed(0)
    found = network.step((torch.rand(2, 3, 32, 32, generator=draw), torch.arange(2)))
    assert [name for name in found if name.startswith("loss/")] == [f"loss/{k}" for k in range(1, 6)]
    assert all(value.isfinite().all() for value in found.values())


def test_what_it_cannot_do_is_one_line():
    with pytest.raises(ConfigError, match="objective.options.patch: 12 is not valid; expected at most half"):
        patch_of(PatchInfoNCEOptions(patch=12), (3, 16, 16))
    with pytest.raises(ConfigError, match="model: 'vit-nano' is not valid; expected a ResNet or VGG"):
        network_of(model="vit-nano")
    with pytest.raises(ConfigError, match="runtime: 'sequential' is not valid; expected inline, threads"):
        network_of(runtime="sequential")
    with pytest.raises(ConfigError, match="objective.loss: 'patch-infonce' .* or method greedy-infomax"):
        build_network(small.config("dgl", 2, (1,), objective=ObjectiveConfig(loss="patch-infonce")), IMAGE)


def test_a_users_model_of_tokens_has_no_patches():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    batch = (torch.arange(12).view(2, 6) % 9, torch.arange(12).view(2, 6) % 9)
    with pytest.raises(ConfigError, match="'patch-infonce' is not valid; expected another loss but"):
        ll.split(model, depth=2, example=batch, objective="patch-infonce")
