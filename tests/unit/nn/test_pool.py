import pytest
import torch

from locallearn.nn.pool import GlobalAveragePool


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_mean(memory, dtype):
    x = torch.randn(3, 4, 5, 6).to(dtype).to(memory_format=memory)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(3, 4).to(dtype)
    (GlobalAveragePool()(a) * weight).sum().backward()
    (b.mean((2, 3)) * weight).sum().backward()
    assert a.grad is not None
    assert torch.equal(GlobalAveragePool()(a), b.mean((2, 3)))
    assert torch.equal(a.grad, b.grad)
    assert a.grad.is_contiguous(memory_format=memory)


def test_gradcheck():
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GlobalAveragePool(), (x,))


def test_without_gradients_it_is_the_mean():
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(GlobalAveragePool()(x), x.mean((2, 3)))
