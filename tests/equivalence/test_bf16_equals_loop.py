"""In bf16, whose paths on the CPU are its own, every node has the gradient that a loop over groups gives it."""

import pytest
import torch

from locallearn.bench.loop import LoopNetwork
from locallearn.bench.step import step_config
from locallearn.core.module import LocalStep
from locallearn.core.network import ImageShape, build_network
from locallearn.data.store import Batch
from locallearn.nn import dense, groups
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer


def difference(depth, width):
    """The largest distance of a node's gradients from the loop's, of one layer, over their length."""
    torch.manual_seed(0)
    images = torch.randn(32, 3, 8, 8).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.arange(32) % 5, images, 0)
    config = step_config("resnet8", "gn-dgl", depth, width)
    network = build_network(config, ImageShape(3, 8, 5))
    loop = LoopNetwork(network, config.objective, config.optimizer, "bf16")
    network.to(memory_format=torch.channels_last)
    optimizers = [build_optimizer(config.optimizer, m.parameters()) for m in network]
    InlineRuntime([LocalStep(m, o, "bf16") for m, o in zip(network, optimizers, strict=True)]).step(batch, 0)
    loop.step(batch)
    found = []
    for module, nodes in zip(network, loop.modules, strict=True):
        rows = {n.replace("objective.head", "head"): p.grad for n, p in module.named_parameters()}
        for g, node in enumerate(nodes):
            for name, parameter in node.named_parameters():
                distance = (rows[name].chunk(module.groups)[g] - parameter.grad).norm() / parameter.grad.norm()
                found.append(distance.item())
    return max(found)


@pytest.mark.parametrize(("depth", "width"), [(1, 8), (2, 4), (4, 2)])
def test_gradients_are_those_of_the_loop_but_for_rounding(depth, width):
    assert difference(depth, width) < 0.1


def test_a_wrong_matrix_product_is_caught(monkeypatch):
    own = dense.product_gradient
    monkeypatch.setattr(dense, "product_gradient", lambda *given: own(*given).flip(1))
    assert difference(2, 4) > 0.5


def test_groups_in_the_wrong_place_are_caught(monkeypatch):
    own = groups.pack
    monkeypatch.setattr(groups, "pack", lambda weight, n, together: own(weight, n, together).roll(1, 1))
    assert difference(2, 4) > 0.5
