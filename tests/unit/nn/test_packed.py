"""Small groups computed together are the grouped convolution."""

import pytest
import torch
import torch.nn.functional as F

from locallearn.nn import group_conv
from locallearn.nn.group_conv import GroupConv2d, conv, pack, packed_together


@pytest.mark.parametrize(
    ("inputs", "outputs", "n", "together"),
    [(16, 16, 2, 2), (16, 32, 4, 4), (32, 32, 4, 1), (32, 32, 8, 2), (64, 64, 8, 1), (64, 64, 16, 2)],
)
def test_groups_are_joined_until_they_fill_a_vector_or_a_cache_line(inputs, outputs, n, together):
    assert packed_together(inputs, outputs, n) == together


@pytest.mark.parametrize(
    ("inputs", "outputs", "n", "together"),
    [(16, 32, 4, 4), (64, 64, 2, 2), (64, 128, 8, 8), (128, 128, 8, 4), (256, 256, 4, 1), (128, 256, 2, 1)],
)
def test_on_a_gpu_groups_are_joined_until_they_fill_a_tile(inputs, outputs, n, together):
    assert packed_together(inputs, outputs, n, on_gpu=True) == together
    assert packed_together(inputs, outputs, n, 16, on_gpu=True) == together


def test_three_groups_of_one_channel_are_never_split_unevenly():
    assert packed_together(3, 3, 3) == 3
    assert packed_together(18, 18, 6) == 3
    assert packed_together(54, 54, 6, 16) == 2


def test_packed_weights_by_hand():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1)  # four groups of one channel, two at a time
    assert pack(weight, 4, 2).squeeze().tolist() == [[1, 0], [0, 2], [3, 0], [0, 4]]


def compare(kernel, stride, n):
    torch.manual_seed(0)
    layer = GroupConv2d(32, 64, kernel, stride, kernel // 2, groups=n, bias=False).double()
    x = torch.randn(2, 32, 5, 5, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    expected = F.conv2d(x, layer.weight, None, stride, kernel // 2, groups=n)
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, (x, layer.weight), grad)
    theirs = torch.autograd.grad(expected, (x, layer.weight), grad)
    for a, b in zip((out, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    layer.eval()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("n", [8, 16, 32])
def test_values_and_gradients_are_those_of_the_grouped_convolution(kernel, stride, n):
    compare(kernel, stride, n)


def test_they_are_with_the_groups_that_a_gpu_joins(monkeypatch):
    joined = []

    def on_gpu(*sizes, on_gpu):
        assert not on_gpu  # the layer looks at its input
        joined.append(packed_together(*sizes, on_gpu=True))
        return joined[-1]

    monkeypatch.setattr(group_conv, "packed_together", on_gpu)
    compare(3, 2, 4)
    assert joined == [4]


def test_groups_that_see_each_other_are_caught(monkeypatch):
    monkeypatch.setattr(group_conv, "pack", lambda weight, n, together: weight.repeat(1, together, 1, 1))
    with pytest.raises(AssertionError):
        compare(3, 1, 8)


def test_nothing_but_input_and_weight_is_kept(kernels):
    layer = GroupConv2d(16, 16, 3, padding=1, groups=4, bias=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last))
    assert kept == [(2, 16, 4, 4), (16, 4, 3, 3)]


@pytest.mark.parametrize("kernel", [1, 3])
def test_without_groups_torch_convolves(kernel, torch_kernels):
    layer, x = conv(64, 32, kernel, 2, 16, dense=True), torch.randn(2, 64, 9, 9)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, stride=2, padding=kernel // 2))
