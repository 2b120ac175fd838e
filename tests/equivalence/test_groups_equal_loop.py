"""The grouped network equals the same network written as a loop over separate per-group modules."""

import copy

import pytest
import torch

import reference
import small
from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.nn import groups as grouped_layers
from locallearn.nn.native import conv as native

IMAGE = ImageShape(3, 8, 5)
SPEC = [("stem", 8, 1), ("1_0", 8, 1), ("1_1", 8, 1), ("2_0", 16, 2)]  # tiny-resnet


def build(depth, width, head="1c2f", stop_gradient=True, diversity=0.5, pool_others=1):
    objective = ObjectiveConfig(
        head=head,
        head_width=12,
        stop_gradient=stop_gradient,
        pool_others=pool_others,
        diversity_weight=diversity,
    )
    config = RunConfig(method="gn-dgl", model="tiny-resnet", depth=depth, width=(width,), objective=objective, seed=3)
    network = build_network(config, IMAGE).double()
    with torch.no_grad():  # batch norm that does something
        for name, parameter in network.named_parameters():
            if "bn" in name:
                parameter.add_(torch.rand_like(parameter))
    return network, config


def plain_nodes(module, span, config):
    n_convs, n_linears = int(config.objective.head[0]), int(config.objective.head[2])
    channels = SPEC[span.stop - 1][1]
    seen = channels if config.objective.stop_gradient else channels // module.groups
    nodes = []
    for group in range(module.groups):
        head = reference.PlainHead(n_convs, n_linears, seen, round(12 * 0.5), IMAGE.classes)
        node = reference.plain_resnet_node(SPEC, span, IMAGE.channels, module.groups, head).double()
        reference.copy_group(node, module, group)
        nodes.append(node)
    return nodes


def spans(depth):
    return {1: [range(4)], 2: [range(2), range(2, 4)], 4: [range(i, i + 1) for i in range(4)]}[depth]


def compare(depth, width, **settings):
    """Run both networks on one batch and compare features, logits, losses and every gradient."""
    torch.manual_seed(0)
    network, config = build(depth, width, **settings)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    for module, span in zip(network, spans(depth), strict=False):
        nodes = plain_nodes(module, span, config)
        features = module(x)
        loss = module.objective(features, small.batch_of(x, labels))
        loss.total.sum().backward()
        expected, logits, losses = reference.plain_step(
            nodes,
            x,
            labels,
            stop_gradient=config.objective.stop_gradient,
            diversity_weight=config.objective.diversity_weight,
            pool_others=config.objective.pool_others,
        )
        close(features, expected, "features")
        close(loss.logits, torch.stack(logits), "logits")
        close(loss.total, torch.stack(losses), "losses")
        compare_gradients(module, nodes)
        x = features.detach()


def compare_gradients(module, nodes):
    gradients = {name: p.grad for name, p in module.named_parameters()}
    for group, node in enumerate(nodes):
        for name, parameter in node.named_parameters():
            kind, rest = name.split(".", 1)
            full = gradients[f"blocks.{rest}" if kind == "blocks" else f"objective.head.{rest}"]
            close(full.chunk(module.groups)[group], parameter.grad, f"gradient of {name}, group {group}")


def close(actual, expected, what):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11, msg=lambda m: f"{what}: {m}")


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_grouped_network_equals_loop(depth, width, stop_gradient):
    compare(depth, width, stop_gradient=stop_gradient)


@pytest.mark.parametrize("head", ["0c1f", "0c2f", "1c1f", "2c3f"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_every_head_equals_loop(head, stop_gradient):
    compare(2, 2, head=head, stop_gradient=stop_gradient)


@pytest.mark.parametrize("pool_others", [2, 3, 4, 99])
def test_other_groups_may_be_pooled(pool_others):
    """3 does not divide a side of 8 or 4, and 99 leaves the mean of a map."""
    compare(2, 2, pool_others=pool_others)
    compare(1, 4, pool_others=pool_others)


def test_own_channels_that_are_pooled_too_are_caught(monkeypatch):
    enlarged = grouped_layers.enlarged

    def shifted(pooled, factor, sides):
        return enlarged(pooled, factor, sides).roll(1, 2)

    monkeypatch.setattr(grouped_layers, "own_channels", lambda weight, groups, n, first: weight[:, :n] * 0)
    with pytest.raises(AssertionError, match="logits"):
        compare(2, 2, pool_others=2)
    monkeypatch.undo()
    monkeypatch.setattr(grouped_layers, "enlarged", shifted)
    with pytest.raises(AssertionError, match="logits"):
        compare(2, 2, pool_others=2)


def test_a_lost_stop_gradient_is_caught(monkeypatch):
    def dense(x, seen, weight, stride, groups, first):
        return torch.nn.functional.conv2d(x, weight, stride=stride, padding=1)

    monkeypatch.setattr(grouped_layers._StopGradientConv, "apply", dense)
    with pytest.raises(AssertionError, match="gradient of blocks"):
        compare(2, 2)


def test_a_gradient_of_the_wrong_channels_is_caught(monkeypatch):
    own = grouped_layers.own_channels
    monkeypatch.setattr(grouped_layers, "own_channels", lambda *given: own(*given).flip(1))
    with pytest.raises(AssertionError, match="gradient of blocks"):
        compare(2, 2)


def test_a_lost_detach_in_the_penalty_is_caught(monkeypatch):
    from locallearn.losses import objectives

    def leaky(logits, labels, temperature):
        groups = len(logits)
        rest = torch.stack(
            [
                torch.stack([reference._rest(x, y, temperature) for x, y in zip(one, labels, strict=True)])
                for one in logits
            ]
        )
        unit = torch.nn.functional.normalize(rest, dim=-1)
        others = unit.sum(0) - unit
        return (unit * others).sum(-1).mean(1) / (groups * (groups - 1))

    monkeypatch.setattr(objectives, "diversity", leaky)
    with pytest.raises(AssertionError, match="gradient"):
        compare(2, 2)


def distance_from_float64(depth, width):
    """Of gradients in fp32, whose channels fill vectors: the largest over layers, median of three draws.

    In float64 torch computes, and the network is the loop over groups (above). A ReLU may flip in one draw.
    """
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        config = RunConfig(method="gn-dgl", model="tiny-resnetx4", depth=depth, width=(width,), seed=seed)
        network = build_network(config, IMAGE).to(memory_format=torch.channels_last)
        exact = copy.deepcopy(network).double()
        x = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
        batch = small.batch_of(x, torch.tensor([0, 1, 2, 3, 4, 0]))
        own, theirs = gradients(network, x, batch), gradients(exact, x.double(), batch)
        found.append(max(((a - b).norm() / b.norm()).item() for a, b in zip(own, theirs, strict=True)))
    return sorted(found)[1]


def gradients(network, x, batch):
    for module in list(network)[:-1]:  # without the decoupled classifier
        features = module(x)
        module.objective(features, batch).total.sum().backward()
        x = features.detach()
    return [p.grad for module in list(network)[:-1] for p in module.parameters()]


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
@pytest.mark.parametrize(("depth", "width"), [(1, 2), (2, 4), (4, 8)])
def test_kernels_of_our_own_compute_the_same_network(depth, width, kernels):
    assert 0 < distance_from_float64(depth, width) < 1e-4


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
@pytest.mark.parametrize("name", ["convolution", "input_gradient", "weight_gradient"])
def test_a_kernel_that_mixes_groups_is_caught(name, kernels, monkeypatch):
    own = getattr(native, name)
    dim = 0 if name == "weight_gradient" else 1
    monkeypatch.setattr(native, name, lambda *given: own(*given).roll(1, dim))
    assert distance_from_float64(2, 8) > 0.1
