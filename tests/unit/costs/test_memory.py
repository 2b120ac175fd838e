import pytest
import torch
from torch import nn

import small
from locallearn.config import OptimizerConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.costs.memory import ActivationMeter
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer


def test_a_chain_by_hand():
    """sin saves its input, exp its output, and the linear layer its input: the same storage counts once."""
    x = torch.randn(10, 4, requires_grad=True)
    layer = nn.Linear(4, 3)
    with ActivationMeter(layer.parameters()) as meter:
        y = x.sin()  # saves x: 160 bytes
        z = y.exp()  # saves z: 160
        w = layer(z)  # saves z again, and a parameter
        assert meter.live_bytes == 320
        w.sum().backward()
    del y, z, w
    assert meter.live_bytes == 0
    assert meter.peak_bytes == 320


def test_nothing_is_counted_without_gradients():
    with ActivationMeter() as meter, torch.no_grad():
        torch.randn(4, requires_grad=True).exp()
    assert meter.peak_bytes == 0


def peak(depth, leak=False):
    method = "e2e" if depth == 1 else "dgl"
    config = RunConfig(method=method, model="resnet8", depth=depth)
    network = build_network(config, ImageShape(3, 16, 10))
    steps = [LocalStep(m, build_optimizer(OptimizerConfig(), m.parameters())) for m in network]
    batch = small.batch_of(torch.randn(8, 3, 16, 16), torch.arange(8))
    with ActivationMeter(network.parameters()) as meter:
        if leak:
            features, kept = batch.images, []
            for module in network:
                features = module(features.detach())
                kept.append(module.objective(features, batch))
            sum(loss.total.sum() for loss in kept).backward()
        else:
            InlineRuntime(steps).step(batch, 0)
    return meter.peak_bytes


def test_the_peak_is_the_largest_modules_and_not_the_sum():
    assert peak(4) < 0.7 * peak(1)


def test_graphs_that_are_kept_are_caught():
    """The sibling: with every module's graph alive at once the peak is the sum."""
    assert peak(4, leak=True) > 1.5 * peak(4)
    assert peak(4, leak=True) > peak(1)


@pytest.mark.parametrize("depth", [1, 4])
def test_the_count_is_the_same_every_time(depth):
    assert peak(depth) == peak(depth)
