"""Context beside features (ContSup): what modules see, what travels, and that it only travels forward."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import small
from locallearn.config import MeshConfig, ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.inference import InferenceNetwork
from locallearn.costs.nodes import cost
from locallearn.errors import ConfigError
from locallearn.nn.groups import StopGradientConv2d
from locallearn.training.depth_features import FeatureReader, places

IMAGE = ImageShape(3, 8, 5)
CASES = {
    "image": {"context": "image"},
    "before": {"context": "before"},
    "vgg": {"context": "image", "model": "tiny-vgg"},
    "vit": {"context": "before", "model": "vit-nano"},
    "predsim": {"context": "before", "method": "predsim"},
    "transport": {"context": "image", "objective": ObjectiveConfig(loss="transport")},
    "overlap": {"context": "image", "overlap": 1},
    "groups": {"context": "image", "method": "gn-dgl", "width": (2,)},
}


def made(case, depth=3, **changes):
    changes = {"method": "dgl", "width": (1,), **CASES[case], **changes}
    return build_network(small.config(depth=depth, **changes), IMAGE).train()


def batch():
    return small.batch_of(torch.randn(10, 3, 8, 8), torch.arange(10) % 5)


def adapted(fusion, context):
    """The published adapters, written plainly with the module's weights."""
    x = context
    for layer in fusion.adapter:
        if isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2, groups=layer.groups)
        elif isinstance(layer, nn.BatchNorm2d):
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            x = (x - mean) / (variance + layer.eps).sqrt() * layer.weight.view(1, -1, 1, 1) + layer.bias.view(
                1, -1, 1, 1
            )
        elif isinstance(layer, nn.ReLU):
            x = x.clamp(min=0)
    rows = [part.mean(2) for part in x.tensor_split(layer.output_size[0], 2)]
    return torch.stack(
        [torch.stack([p.mean(2) for p in row.tensor_split(layer.output_size[1], 2)], 2) for row in rows], 2
    )


def slow_loop(network, batch):
    """Losses, and gradients of all that is trained, module by module."""
    given = features = context = batch.images
    losses, gradients = [], []
    for k, module in enumerate(copy.deepcopy(network)):
        if k:
            given = features + adapted(module.fusion, context)
        out = module.blocks(given)
        loss = module.objective(out, batch)
        loss.total.sum().backward()
        losses.append(loss.total.detach())
        gradients.append({name: p.grad for name, p in module.named_parameters()})
        features, context = out.detach(), batch.images if module.fusion.kind == "image" else given.detach()
    return losses, gradients


@pytest.mark.parametrize("case", ["image", "before"])
def test_a_step_is_that_of_a_slow_loop(case):
    torch.manual_seed(0)
    network, data = made(case), batch()
    losses, gradients = slow_loop(network, data)
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, 0.0))
    found = network.walk(network.steps, data)
    for loss, expected in zip(found, losses, strict=True):
        torch.testing.assert_close(loss.total, expected)
    for module, expected in zip(network, gradients, strict=True):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def dense(blocks):
    """The blocks with plain convolutions in the place of those that hand a gradient to a group's own channels."""
    for parent in list(blocks.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, StopGradientConv2d):
                weight = layer.weight
                plain = nn.Conv2d(
                    weight.shape[1], weight.shape[0], weight.shape[2], layer.stride, weight.shape[2] // 2
                )
                plain.weight, plain.bias = weight, None
                setattr(parent, name, plain)
    return blocks


def gradients_of_groups(network, batch, others):
    """Of the second module, each group's loss on its own channels, and the others' detached unless ``others``."""
    first, second = list(copy.deepcopy(network))[:2]
    features = first.features(first(batch.images)).detach()
    blocks, found = dense(second.blocks), {}
    for g in range(2):
        given = features + adapted(second.fusion, batch.images)
        parts = [part if k == g or others else part.detach() for k, part in enumerate(given.chunk(2, 1))]
        loss = second.objective(blocks(torch.cat(parts, 1)), batch).total[g]
        named = dict(second.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                found[name] = found.get(name, 0) + gradient
    return found


@pytest.mark.parametrize("others", [False, True])
def test_groups_see_context_as_a_loop_over_groups_does_and_train_their_own_adapters(others):
    torch.manual_seed(0)
    network, data = made("groups"), batch()
    expected = gradients_of_groups(network, data, others)
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, 0.0))
    network.walk(network.steps, data)
    second = list(network)[1]
    same = [
        torch.allclose(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)
        for name, parameter in second.named_parameters()
        if name.startswith("fusion")
    ]
    assert all(same) != others


def test_without_the_adapter_the_loop_is_another():
    torch.manual_seed(0)
    network, data = made("image"), batch()
    losses, _ = slow_loop(network, data)
    for module in list(network)[1:]:
        nn.init.zeros_(module.fusion.adapter[-3].weight)
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, 0.0))
    assert not torch.allclose(network.walk(network.steps, data)[1].total, losses[1])


@pytest.mark.parametrize("case", CASES)
def test_every_network_learns_and_is_the_same_wherever_it_is_used(case):
    torch.manual_seed(0)
    network, data = made(case), batch()
    network.set_optimizers(lambda parameters: torch.optim.Adam(parameters, 3e-3))
    losses = [network.step((data.images, data.labels)) for _ in range(12)]
    assert all(losses[-1][name] < losses[0][name] for name in losses[0] if name.startswith("loss/"))
    network.eval()
    with torch.no_grad():
        expected = network(data.images)
        torch.testing.assert_close(InferenceNetwork(network, [0] * 3, [1] * 3)(data.images), expected)
        torch.testing.assert_close(network.all_logits(data.images)[-1][0], expected)
        last = FeatureReader(network, places(network, "last"), "fp32")(data.images)[0]
        torch.testing.assert_close(last, network.features(data.images))


def test_nothing_of_a_loss_reaches_another_module():
    network, data = made("before"), batch()
    first, second, third = network
    carried = first.handed_on(first(data.images, data))
    out = third(second.handed_on(second(carried, data)), data)
    third.loss(out, data).total.sum().backward()
    assert all(p.grad is None for module in (first, second) for p in module.parameters())
    assert all(p.grad is not None for p in third.fusion.parameters())


def test_what_travels_and_what_is_computed_is_counted():
    config = small.config("dgl", 3, (1,), context="image", cuts=("stem", "1.0"))
    found, plain = (cost(c, IMAGE, batch_size=16) for c in (config, dataclasses.replace(config, context="none")))
    image = 4 * 16 * 3 * 8 * 8
    assert found.to_json()["context_bytes"] == [image, image, 0]
    for module, alone, extra in zip(found.modules, plain.modules, (image, image, 0), strict=True):
        assert module.output_bytes == alone.output_bytes + extra
    convolutions = 64 * (9 * 3 * 12 + 9 * 12 * 8)
    others = 64 * 3 * (12 + 8) + 64 * 8  # batch norms, ReLUs, and the mean
    assert found.modules[1].block_macs == plain.modules[1].block_macs + convolutions + others
    assert found.inference_macs == plain.inference_macs + 2 * (convolutions + others)
    before = cost(dataclasses.replace(config, context="before"), IMAGE, batch_size=16).to_json()["context_bytes"]
    assert before == [image, 4 * 16 * 8 * 8 * 8, 0]
    assert "context_bytes" not in plain.to_json()


def test_where_there_is_none_it_is_one_line():
    for changes, message in (
        ({"depth": 1, "method": "e2e"}, "context: 'image' is not valid; expected none with depth 1"),
        (
            {"width": (2,), "method": "gn-dgl", "runtime": "distributed", "mesh": MeshConfig(width=2)},
            "mesh.width: 2 is not valid; expected 1 with context image",
        ),
        ({"runtime": "sequential"}, "runtime: 'sequential' is not valid; expected inline, threads, cuda-graphs or"),
        (
            {"runtime": "asynchronous"},
            "runtime: 'asynchronous' is not valid; expected inline, threads, cuda-graphs or",
        ),
        ({"context": "pictures"}, "context: 'pictures' is not valid; expected"),
    ):
        with pytest.raises(ConfigError, match=message):
            small.config(**{"method": "dgl", "depth": 3, "width": (1,), "context": "image", **changes})
    hidden = small.config("mae", 2, (1,), model="vit-nano", context="image")
    with pytest.raises(ConfigError, match="context: 'image' is not valid; expected none with method mae"):
        build_network(hidden, IMAGE)
