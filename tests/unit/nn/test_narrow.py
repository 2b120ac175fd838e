"""Batch norm of few channels has the values, gradients and statistics of torch's."""

import copy

import pytest
import torch
from torch import nn

from locallearn.nn.narrow import NarrowBatchNorm2d, narrowed, together


def both(channels, side, dtype, memory_format=torch.channels_last):
    torch.manual_seed(0)
    x = (torch.randn(6, channels, side, side) * 2 + 3).to(dtype).to(memory_format=memory_format)
    grad = torch.randn_like(x)
    plain = nn.Sequential(nn.BatchNorm2d(channels))
    nn.init.normal_(plain[0].weight)
    nn.init.normal_(plain[0].bias)
    found = []
    for norm in (plain, narrowed(copy.deepcopy(plain))):
        given = x.clone().requires_grad_()
        out = norm(given)
        out.backward(grad)
        found.append([out.detach(), given.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    return found


@pytest.mark.parametrize(("channels", "side"), [(4, 8), (8, 16), (16, 16), (8, 2)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_torch(channels, side, dtype, close):
    assert together(torch.empty(6, channels, side, side).to(memory_format=torch.channels_last)) > 1
    for expected, found in zip(*both(channels, side, dtype), strict=True):
        largest = expected.abs().max().item()
        assert (found.float() - expected.float()).abs().max().item() <= close * largest


@pytest.mark.parametrize(
    ("channels", "side", "memory_format"),
    [(8, 16, torch.contiguous_format), (32, 16, torch.channels_last), (8, 15, torch.channels_last)],
)
def test_elsewhere_it_is_torchs_own(channels, side, memory_format):
    assert all(torch.equal(a, b) for a, b in zip(*both(channels, side, torch.float32, memory_format), strict=True))


def test_forgotten_statistics_are_seen(monkeypatch):
    """The gradient that flows through mean and variance is most of the work; without it the test above fails."""
    monkeypatch.setattr(torch.Tensor, "add_", lambda self, other: self)
    expected, found = both(8, 16, torch.float32)
    assert (found[1] - expected[1]).abs().max() > 1e-3 * expected[1].abs().max()


def test_in_eval_mode_it_is_torchs_own():
    norm = NarrowBatchNorm2d(8).eval()
    x = torch.randn(2, 8, 8, 8).to(memory_format=torch.channels_last)
    assert torch.equal(norm(x), nn.BatchNorm2d(8).eval()(x))
