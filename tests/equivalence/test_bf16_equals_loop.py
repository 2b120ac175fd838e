"""In bf16, whose paths on the CPU are its own, every node has the gradient that a loop over groups gives it."""

import pytest
import torch

from locallearn.bench.group_loop import LoopNetwork
from locallearn.bench.step import step_config
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.data.store import Batch
from locallearn.nn import dense, group_conv
from locallearn.nn.native import build
from locallearn.nn.native import conv as native
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer


def setting(depth, width, seed=0):
    torch.manual_seed(seed)
    images = torch.randn(32, 3, 8, 8).to(memory_format=torch.channels_last)
    config = step_config("resnet8", "gn-dgl", depth, width)
    return config, build_network(config, ImageShape(3, 8, 5)), Batch(images, torch.arange(32) % 5, images, 0)


def step(config, network, batch, precision):
    network.to(memory_format=torch.channels_last)
    optimizers = [build_optimizer(config.optimizer, m.parameters()) for m in network]
    InlineRuntime([LocalStep(m, o, precision) for m, o in zip(network, optimizers, strict=True)]).step(batch, 0)


def difference(depth, width):
    """The largest distance of a node's gradients from the loop's, of one layer, over their length."""
    config, network, batch = setting(depth, width)
    loop = LoopNetwork(network, config.objective, config.optimizer, "bf16")
    step(config, network, batch, "bf16")
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
def test_gradients_are_those_of_the_loop_but_for_rounding(depth, width, torch_kernels):
    assert difference(depth, width) < 0.1


def test_a_wrong_matrix_product_is_caught(monkeypatch, torch_kernels):
    own = dense.product_gradient
    monkeypatch.setattr(dense, "product_gradient", lambda *given: own(*given).flip(1))
    assert difference(2, 4) > 0.5


def test_groups_in_the_wrong_place_are_caught(monkeypatch, torch_kernels):
    own = group_conv.pack
    monkeypatch.setattr(group_conv, "pack", lambda weight, n, together: own(weight, n, together).roll(1, 1))
    assert difference(2, 4) > 0.5


def gradients(depth, width, seed, precision):
    config, network, batch = setting(depth, width, seed)
    step(config, network, batch, precision)
    return [parameter.grad for parameter in network.parameters()]


def error(depth, width):
    """Mean distance of bf16 gradients from those in fp32, over their length, over layers and draws."""
    found = []
    for seed in range(4):
        exact, rounded = (gradients(depth, width, seed, precision) for precision in ("fp32", "bf16"))
        found += [((b - a).norm() / a.norm()).item() for a, b in zip(exact, rounded, strict=True)]
    return sum(found) / len(found)


SIZES = [(1, 8), (2, 4), (4, 2)]


@pytest.fixture(scope="module")
def torchs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "kernels", build.Kernels)
        torch.set_num_threads(1)
        return {size: error(*size) for size in SIZES}


@pytest.mark.parametrize(("depth", "width"), SIZES)
@pytest.mark.parametrize("kernels", ["pairs", "float"], indirect=True)
def test_kernels_of_our_own_round_no_more_than_torchs(torchs, depth, width, kernels):
    assert error(depth, width) < 1.05 * torchs[depth, width]


@pytest.mark.parametrize("kernels", ["pairs", "float"], indirect=True)
def test_a_native_gradient_in_the_wrong_place_is_caught(torchs, kernels, monkeypatch):
    own = native.weight_gradient
    monkeypatch.setattr(native, "weight_gradient", lambda *given: own(*given).roll(1, 0))
    assert error(2, 4) > 1.3 * torchs[2, 4]
