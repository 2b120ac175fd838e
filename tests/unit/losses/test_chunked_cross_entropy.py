"""Cross entropy in parts of the scores is cross entropy: value and gradients, in fp64, fp32 and bf16."""

import pytest
import torch
import torch.nn.functional as F

from locallearn.costs.memory import ActivationMeter
from locallearn.losses.chunked import linear_cross_entropy
from locallearn.losses.tokens import draw_tokens


def made(trained, bias=True, dtype=torch.float64, ignored=(2,)):
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    x, weight, offset = normal(7, 5).requires_grad_(), normal(11, 5), normal(11) if bias else None
    if trained:
        weight.requires_grad_()
        offset = offset.requires_grad_() if bias else None
    labels = torch.randint(11, (7,), generator=draw)
    labels[list(ignored)] = -100
    return x, weight, offset, labels


def value_and_gradients(loss, tensors):
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    return [loss.detach(), *torch.autograd.grad(3 * loss, wanted)]


@pytest.mark.parametrize("chunk", [1, 24, 1000])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_value_and_gradients_in_fp64(trained, bias, chunk):
    *tensors, labels = made(trained, bias)
    ours = value_and_gradients(linear_cross_entropy(*tensors, labels, chunk), tensors)
    plain = value_and_gradients(F.cross_entropy(F.linear(*tensors), labels), tensors)
    assert len(ours) == 2 + trained * (1 + bias)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", [True, False])
def test_numerical_gradients(trained):
    *tensors, labels = made(trained)
    assert torch.autograd.gradcheck(lambda *given: linear_cross_entropy(*given, labels, 20), tensors)


@pytest.mark.parametrize("trained", [True, False])
def test_under_autocast_the_loss_is_fp32_and_near(trained):
    *tensors, labels = made(trained, dtype=torch.float32)
    exact = value_and_gradients(F.cross_entropy(F.linear(*tensors), labels), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*tensors, labels, 20)
    assert loss.dtype == torch.float32
    for a, b in zip(value_and_gradients(loss, tensors), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("trained", [True, False])
def test_very_large_scores_do_not_overflow(trained):
    x, weight, offset, labels = made(trained)
    tensors = [(1e4 * x).detach().requires_grad_(), weight, offset]
    ours = value_and_gradients(linear_cross_entropy(*tensors, labels, 30), tensors)
    plain = value_and_gradients(F.cross_entropy(F.linear(*tensors), labels), tensors)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("trained", [True, False])
def test_no_labels_that_count_are_nan_as_in_torch(trained):
    *tensors, labels = made(trained, ignored=range(7))
    assert torch.isnan(F.cross_entropy(F.linear(*tensors), labels))
    assert torch.isnan(linear_cross_entropy(*tensors, labels, 20))


@pytest.mark.parametrize("trained", [True, False])
def test_gradients_of_gradients_are_refused(trained):
    *tensors, labels = made(trained)
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(linear_cross_entropy(*tensors, labels, 20), tensors[0], create_graph=True)


@pytest.mark.parametrize("trained", [True, False])
def test_scores_are_not_kept(trained):
    x, weight, labels = torch.randn(64, 4, requires_grad=True), torch.randn(512, 4), torch.arange(64)
    kept = []
    for loss in (
        lambda: linear_cross_entropy(x, weight.requires_grad_(trained), None, labels, 1024),
        lambda: F.cross_entropy(F.linear(x, weight), labels),
    ):
        with ActivationMeter([x, weight]) as meter:
            loss().backward()
        kept.append(meter.peak_bytes)
    assert kept[0] <= 64 * (4 * 4 + 8)
    assert kept[1] >= 64 * 512 * 4


def test_tokens_whose_label_counts_are_drawn_first():
    labels = torch.full((40,), -100)
    labels[::4] = 1
    seen = torch.zeros(40)
    for seed in range(200):
        torch.manual_seed(seed)
        drawn = draw_tokens(labels, 0.1)
        assert len(set(drawn.tolist())) == 4
        seen[drawn] += 1
    assert seen[labels < 0].sum() == 0
    assert seen[labels > 0].min() > 50  # 80 are expected of each
    assert sorted(draw_tokens(labels, 0.25).tolist()) == list(range(0, 40, 4))
    assert len(draw_tokens(labels, 0.26)) == 11
