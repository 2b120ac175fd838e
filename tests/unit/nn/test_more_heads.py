"""Flat heads and wide projectors against plain layers."""

import torch
from torch import nn

from locallearn.nn.flat_head import FlatHead
from locallearn.nn.ssl_head import FeatureNoise, WideProjector


def drawn(module):
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def test_flat_heads_see_every_number():
    x = torch.randn(3, 4, 2, 2)
    head = drawn(FlatHead((4, 2, 2), 5))
    torch.testing.assert_close(head(x)[0], x.flatten(1) @ head.linear.weight.T + head.linear.bias)
    naive = drawn(FlatHead((4, 2, 2), 5, groups=2))
    weight, bias = naive.linear.weight.chunk(2), naive.linear.bias.chunk(2)
    for g in range(2):
        torch.testing.assert_close(naive(x)[g], x[:, 2 * g : 2 * g + 2].flatten(1) @ weight[g].T + bias[g])
    seeing = drawn(FlatHead((4, 2, 2), 5, groups=2, stop_gradient=True))
    x.requires_grad_()
    seeing(x)[0].sum().backward()
    assert x.grad[:, :2].abs().min() > 0
    assert x.grad[:, 2:].abs().max() == 0


def test_a_wide_projector_of_every_group():
    """Convolution, batch norm, ReLU, mean; twice linear, batch norm, ReLU; linear."""
    head = drawn(WideProjector((4, 3, 3), 6, 5, 7, groups=2)).double()
    x = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    out = head(x)

    def normalised(y, weight, bias):
        dims = [d for d in range(y.dim()) if d != 1]
        mean, var = y.mean(dims, keepdim=True), y.var(dims, correction=0, keepdim=True)
        shape = [1, -1] + [1] * (y.dim() - 2)
        return (y - mean) / (var + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    for g in range(2):
        own = {name: value.chunk(2)[g] for name, value in head.named_parameters()}
        y = torch.einsum("bchw,oc->bohw", x[:, 2 * g : 2 * g + 2], own["conv.weight"][:, :, 0, 0])
        y = normalised(y, own["bn.weight"], own["bn.bias"]).relu().mean((2, 3))
        for i in (0, 3):
            y = y @ own[f"projector.{i}.weight"].T + own[f"projector.{i}.bias"]
            y = normalised(y, own[f"projector.{i + 1}.weight"], own[f"projector.{i + 1}.bias"]).relu()
        y = y @ own["projector.6.weight"].T + own["projector.6.bias"]
        torch.testing.assert_close(out[g], y)


def test_noise_is_a_share_of_the_deviation_of_every_group_in_training_alone():
    torch.manual_seed(0)
    noise = FeatureNoise(0.25, groups=2)
    x = torch.randn(64, 4, 8, 8)
    x[:, 2:] *= 10
    added = noise(x) - x
    assert abs(added[:, :2].std() - 0.25) < 0.01
    assert abs(added[:, 2:].std() - 2.5) < 0.1
    assert torch.equal(noise.eval()(x), x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(noise.train()(x).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
