"""Gradients of gradients are right or an error, never silently wrong."""

import pytest
import torch
from torch import nn

from locallearn.losses.functional import diversity
from locallearn.nn.group_conv import GroupConv2d
from locallearn.nn.groups import StopGradientConv2d
from locallearn.nn.narrow import NarrowBatchNorm2d
from locallearn.nn.native import build
from locallearn.nn.norm_relu import norm_relu
from locallearn.nn.peers import Peers, computing_with
from locallearn.nn.pool import GlobalAveragePool
from locallearn.nn.replicas import whole_batch_norms


def _stop_gradient(x):
    layer = StopGradientConv2d(16, 4, 1, 2)
    nn.init.normal_(layer.weight)
    return layer(x)


def _norm_of_replicas(x):
    others = Peers()
    others.replicas = 2  # with none it is torch's own
    with computing_with(others), whole_batch_norms():
        return nn.BatchNorm2d(16)(x)


FUNCTIONS = {
    "grouped": GroupConv2d(16, 16, 3, padding=1, groups=4, bias=False),
    "packed": GroupConv2d(18, 18, 3, padding=1, groups=6, bias=False),
    "stop gradient": _stop_gradient,
    "narrow norm": NarrowBatchNorm2d(16),
    "norm of replicas": _norm_of_replicas,
    "diversity": lambda x: diversity(x.mean((2, 3)).view(2, 2, 8), torch.tensor([1, 2])),
}


def twice(function, x, power=3):
    """The gradient of a penalty on the gradient, as a loss of a user's own has it."""
    x = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    loss = function(x).pow(power).sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + first.square().sum()).backward()
    return x.grad


@pytest.mark.parametrize("power", [1, 3])  # with 1 the gradient from above is a constant
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_second_order_that_we_do_not_compute_is_an_error(name, power):
    x = torch.randn(2, 18 if name == "packed" else 16, 8, 8)
    with pytest.raises(RuntimeError, match="has no gradients of gradients"):
        twice(FUNCTIONS[name], x, power)


@pytest.mark.skipif(not build.kernels().libraries, reason="no native kernels here")
def test_so_it_is_with_our_kernels_of_norm_and_relu():
    norm = nn.BatchNorm2d(16)
    with pytest.raises(RuntimeError, match="NormRelu has no gradients of gradients"):
        twice(lambda x: norm_relu(norm, nn.ReLU(), x), torch.randn(2, 16, 8, 8))


def test_the_second_order_of_a_mean_is_right():
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    found, wanted = twice(GlobalAveragePool(), x), twice(lambda x: x.mean((2, 3)), x)
    torch.testing.assert_close(found, wanted)
    (first,) = torch.autograd.grad(GlobalAveragePool()(x.requires_grad_()).pow(3).sum(), x)
    assert (found - first).abs().max() > 0
