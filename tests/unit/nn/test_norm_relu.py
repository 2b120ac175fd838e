"""Batch norm with what follows it, by our own kernels, is torch's."""

import copy

import pytest
import torch
from torch import nn

from locallearn.nn.native import norm as native
from locallearn.nn.norm_relu import norm_relu, norm_relu_mean
from locallearn.nn.pool import GlobalAveragePool


def drawn(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


def layers(channels):
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, -1.5, 1.5)
    nn.init.normal_(norm.bias)
    return norm


def by_hand(norm, x, more, mean):
    """In float64, as the paper has it, with running statistics."""
    x, more, (weight, bias) = x.double(), more.double(), (p.double() for p in norm.parameters())
    mu, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    y = (x - mu) / (var + norm.eps).sqrt() * weight[None, :, None, None] + bias[None, :, None, None]
    y = (y if mean else y + more).clamp(min=0)
    running = 0.1 * mu.flatten(), 0.9 + 0.1 * x.var((0, 2, 3))
    return (y.mean((2, 3)) if mean else y), running


SIZES = [(3, 16, 5, 7), (6, 48, 1, 2), (1, 16, 3, 1), (5, 64, 8, 8), (3, 8, 5, 6), (3, 4, 6, 6), (3, 8, 5, 5)]


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_values_gradients_and_running_statistics_are_batch_norms(size, mean, kernels):
    torch.manual_seed(0)
    norm, relu, pool = layers(size[1]), nn.ReLU(), GlobalAveragePool()
    x, more = (drawn(*size).add_(3).requires_grad_() for _ in range(2))
    leaves = [x, *norm.parameters(), *([] if mean else [more])]
    found = norm_relu_mean(norm, relu, pool, x) if mean else norm_relu(norm, relu, x, more)
    wanted, running = by_hand(norm, x, more, mean)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(wanted, leaves, grad.double()), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close((norm.running_mean.double(), norm.running_var.double()), running, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_no_map_is_kept_but_what_came_in(kernels):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        norm_relu_mean(layers(16), nn.ReLU(), GlobalAveragePool(), drawn(2, 16, 4, 4).requires_grad_())
    assert [shape for shape in kept if len(shape) == 4] == [(2, 16, 4, 4)]


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_in_bf16_a_map_is_rounded_once(kernels):
    norm, x = layers(32), drawn(4, 32, 6, 6).bfloat16()
    exact = norm_relu(copy.deepcopy(norm), nn.ReLU(), x.float())
    assert torch.equal(norm_relu(norm, nn.ReLU(), x), exact.bfloat16())


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_values_do_not_depend_on_threads(kernels):
    norm, x = layers(16), drawn(5, 16, 9, 9).requires_grad_()

    def everything():
        out = norm_relu(copy.deepcopy(norm), nn.ReLU(), x)
        return [out, *torch.autograd.grad(out.square().sum(), [x])]

    one = everything()
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
@pytest.mark.parametrize(
    ("norm", "relu", "x"),
    [
        (nn.BatchNorm2d(16).eval(), nn.ReLU(), drawn(2, 16, 3, 3)),
        (nn.BatchNorm2d(16, momentum=None), nn.ReLU(), drawn(2, 16, 3, 3)),
        (nn.BatchNorm2d(16, affine=False), nn.ReLU(), drawn(2, 16, 3, 3)),
        (nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(), drawn(2, 16, 3, 3)),
        (nn.InstanceNorm2d(16), nn.ReLU(), drawn(2, 16, 3, 3)),
        (nn.BatchNorm2d(16), nn.SiLU(), drawn(2, 16, 3, 3)),
        (nn.BatchNorm2d(18), nn.ReLU(), drawn(2, 18, 3, 3)),
        (nn.BatchNorm2d(16).double(), nn.ReLU(), drawn(2, 16, 3, 3).double()),
        (nn.BatchNorm2d(16), nn.ReLU(), torch.randn(2, 16, 3, 3)),
    ],
)
def test_anything_else_is_torchs(norm, relu, x, kernels, monkeypatch):
    monkeypatch.setattr(native, "norm_relu", None)
    wanted = relu(copy.deepcopy(norm)(x))
    assert torch.equal(norm_relu(norm, relu, x), wanted)


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_a_single_number_a_channel_is_refused_as_torch_does(kernels):
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_relu(nn.BatchNorm2d(16), nn.ReLU(), drawn(1, 16, 1, 1))


@pytest.mark.parametrize("kernels", ["pairs"], indirect=True)
def test_a_lost_mask_is_caught(kernels, monkeypatch):
    library = native.library(drawn(1, 16, 1, 1))

    class Unmasked:
        def __getattr__(self, name):
            return getattr(library, name)

        def gradient_of_input(self, back, kind, *rest):
            library.gradient_of_input(back, native.MASKED, *rest)

    monkeypatch.setattr(native, "library", lambda x: Unmasked())
    norm, x = layers(16), drawn(3, 16, 4, 4).requires_grad_()
    out = norm_relu(norm, nn.ReLU(), x)
    wanted, _ = by_hand(norm, x, torch.zeros_like(x), False)
    grad = torch.randn_like(out)
    one, other = torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(wanted, x, grad.double())[0]
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("mean", [False, True])
def test_nan_stays_nan(mean, kernels):
    x = drawn(2, 16, 3, 3)
    x[0, 3, 1, 1] = torch.nan
    x.requires_grad_()
    norm, relu, pool = nn.BatchNorm2d(16), nn.ReLU(), GlobalAveragePool()
    out = norm_relu_mean(norm, relu, pool, x) if mean else norm_relu(norm, relu, x)
    assert out[:, 3].isnan().all()
    assert not out[:, 4].isnan().any()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad[:, 3].isnan().all()
    assert not grad[:, 4].isnan().any()
