import pytest
import torch
import torch.nn.functional as F

from locallearn.nn.decoder import Decoder
from locallearn.nn.init import initialise
from locallearn.nn.macs import dry_run


def decoder(channels=4, side=8, hidden=6):
    torch.manual_seed(0)
    module = Decoder(channels, 3, side, hidden).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def upsampled(x, side):
    """Bilinear interpolation with corners on corners, position by position."""
    size = x.shape[-1]
    out = torch.zeros(*x.shape[:2], side, side, dtype=x.dtype)
    for i in range(side):
        for j in range(side):
            r, c = i * (size - 1) / (side - 1), j * (size - 1) / (side - 1)
            r0, c0 = min(int(r), size - 2), min(int(c), size - 2)
            a, b = r - r0, c - c0
            out[..., i, j] = (1 - a) * ((1 - b) * x[..., r0, c0] + b * x[..., r0, c0 + 1]) + a * (
                (1 - b) * x[..., r0 + 1, c0] + b * x[..., r0 + 1, c0 + 1]
            )
    return out


@pytest.mark.parametrize("size", [2, 4, 8])
def test_values_equal_the_layers_written_out(size):
    module = decoder()
    x = torch.randn(5, 4, size, size, dtype=torch.float64)
    hidden = F.conv2d(upsampled(x, 8), module.conv1.weight, module.conv1.bias, padding=1)
    mean, variance = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), keepdim=True, correction=0)
    normal = (hidden - mean) / (variance + 1e-5).sqrt()
    active = F.relu(normal * module.bn.weight.view(-1, 1, 1) + module.bn.bias.view(-1, 1, 1))
    expected = F.conv2d(active, module.conv2.weight, module.conv2.bias, padding=1)
    out = module(x)
    assert out.shape == (5, 3, 8, 8)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)


def test_upsampling_with_other_corners_is_caught():
    module = decoder()
    x = torch.randn(5, 4, 4, 4, dtype=torch.float64)
    other = F.interpolate(x, size=(8, 8), mode="bilinear", align_corners=False)
    assert not torch.allclose(module(x), module(other), rtol=1e-2)


def test_macs_of_resnet32_second_stage():
    """32 x 32 positions: conv 9 * 32 * 12 + bias, batch norm 2, ReLU 1 on 12 channels; conv 9 * 12 * 3 + bias."""
    run = dry_run(Decoder(32, 3, 32, 12), (32, 16, 16))
    assert run.macs == 1024 * (12 * (9 * 32 + 1 + 2 + 1) + 3 * (9 * 12 + 1))
    assert run.shape == (3, 32, 32)


def test_initial_weights_come_from_the_seed_alone():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = Decoder(4, 3, 8)
        initialise(module, 1, 7, "x")
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert states[0]["conv1.weight"].std().item() == pytest.approx((2 / (9 * 12)) ** 0.5, rel=0.15)
