import math

import pytest
import torch

from locallearn.losses.decorrelation import barlow_twins, vicreg

N, P = 6, 3
Z = torch.randn(2, 2 * N, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def column(x, p):
    values = [row[p] for row in x]
    mean = sum(values) / len(values)
    return [v - mean for v in values], sum((v - mean) ** 2 for v in values)


def slow_barlow_twins(z, weight):
    first, second = z[:N], z[N:]
    total = 0.0
    for i in range(P):
        for j in range(P):
            (a, aa), (b, bb) = column(first, i), column(second, j)
            scale = math.sqrt(aa / N + 1e-5) * math.sqrt(bb / N + 1e-5)
            c = sum(x * y for x, y in zip(a, b, strict=True)) / N / scale
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def slow_vicreg(z, weights):
    first, second = z[:N], z[N:]
    alike = sum((x - y) ** 2 for u, v in zip(first, second, strict=True) for x, y in zip(u, v, strict=True)) / (N * P)
    lack = crossed = 0.0
    for view in (first, second):
        for i in range(P):
            a, aa = column(view, i)
            lack += max(0.0, 1 - math.sqrt(aa / (N - 1) + 1e-4)) / P / 2
            for j in range(P):
                if i != j:
                    b, _ = column(view, j)
                    crossed += (sum(x * y for x, y in zip(a, b, strict=True)) / (N - 1)) ** 2 / P
    return weights[0] * alike + weights[1] * lack + weights[2] * crossed


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
def test_barlow_twins_is_the_slow_loop(weight):
    expected = torch.tensor([slow_barlow_twins(z.tolist(), weight) for z in Z], dtype=torch.float64)
    torch.testing.assert_close(barlow_twins(Z, weight), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_vicreg_is_the_slow_loop(weights):
    z = Z / 2  # standard deviations below 1
    expected = torch.tensor([slow_vicreg(x.tolist(), weights) for x in z], dtype=torch.float64)
    torch.testing.assert_close(vicreg(z, weights), expected, rtol=1e-12, atol=0)


def test_views_in_another_order_are_caught():
    mixed = torch.cat([Z[:, ::2], Z[:, 1::2]], dim=1)
    for loss in (barlow_twins, vicreg):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(loss(mixed), loss(Z))


def test_constant_projections_give_finite_losses_and_gradients():
    z = torch.ones(1, 8, 4, requires_grad=True)
    for loss in (barlow_twins, vicreg):
        (gradient,) = torch.autograd.grad(loss(z).sum(), z)
        assert gradient.isfinite().all()
    assert barlow_twins(z).item() == 4.0  # no correlation at all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_image_has_a_finite_loss(dtype):
    """As the last batch of an epoch may have."""
    x = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    loss = vicreg(x)
    loss.sum().backward()
    first, second = x.detach().float().chunk(2, dim=1)
    expected = 25 * (first - second).square().mean((1, 2)) + 25 * (1 - math.sqrt(1e-4))
    torch.testing.assert_close(loss.detach(), expected)
    assert x.grad is not None
    assert x.grad.isfinite().all()
