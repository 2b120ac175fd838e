"""Matrix products that stand in for convolutions."""

import pytest
import torch
import torch.nn.functional as F

from locallearn.nn import dense
from locallearn.nn.group_conv import GroupConv2d
from locallearn.nn.groups import StopGradientConv2d


@pytest.mark.parametrize(("stride", "height", "width"), [(1, 4, 5), (2, 4, 6), (2, 5, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_matrix_products_are_a_convolution_and_its_weights_gradient(stride, height, width, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, width, dtype=torch.float64).to(memory_format=layout)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x, weight, stride=stride, padding=1)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, weight, grad)
    torch.testing.assert_close(dense.product(x, weight, stride), out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense.product_gradient(grad, x, stride), expected, rtol=1e-12, atol=1e-12)


def in_bf16(x, weight):
    layer = StopGradientConv2d(32, 8, 2, 2)
    layer.weight.data = weight
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x.requires_grad_())
    return out, *torch.autograd.grad(out, layer.weight, torch.ones_like(out))


@pytest.mark.parametrize(("rule", "name", "which"), [("ROWS", "product", 0), ("COLUMNS", "product_gradient", 1)])
def test_large_heads_use_them_in_bf16(rule, name, which, monkeypatch, torch_kernels):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 32, 8, 8), torch.randn(16, 32, 3, 3)
    monkeypatch.setattr(dense, rule, 100)
    theirs = in_bf16(x, weight)[which]
    monkeypatch.setattr(dense, rule, 1)
    torch.testing.assert_close(in_bf16(x, weight)[which], theirs, rtol=2e-2, atol=2e-2)
    monkeypatch.setattr(dense, name, lambda *given: torch.zeros_like(theirs))
    assert not in_bf16(x, weight)[which].any()


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_kernels_of_our_own_convolve_few_channels(kernels, monkeypatch):
    x, weight = (torch.randn(*size).to(memory_format=torch.channels_last) for size in ((2, 16, 8, 8), (64, 16, 3, 3)))
    torch.testing.assert_close(dense.forward(x, weight, 2), F.conv2d(x, weight, stride=2, padding=1))
    monkeypatch.setattr(dense.native, "convolution", lambda *given: torch.zeros(1))
    assert not dense.forward(x, weight, 2).any()


@pytest.mark.parametrize("groups", [1, 2])
def test_shortcuts_of_few_channels_on_large_maps_have_a_gradient(groups):
    """oneDNN's, of channels-last maps with a stride, ended the process."""
    torch.manual_seed(0)
    layer = GroupConv2d(8, 16, 1, stride=2, groups=groups, bias=False)
    x = torch.randn(8, 8, 112, 112).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = layer(x)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, (layer.weight, x), grad)
    double, weight = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    expected = F.conv2d(double, weight, stride=2, groups=groups)
    torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad(expected, (weight, double), grad.double()), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-3)
