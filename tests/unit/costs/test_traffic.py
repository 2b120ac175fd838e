"""Bytes that operators move, against counts by hand and against a real step."""

import pytest
import torch
import torch.nn.functional as F

from locallearn.bench.step import Setting, local, step_config
from locallearn.config import TrainConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs import traffic
from locallearn.costs.traffic import Traffic, step_traffic
from locallearn.training.optim import build_optimizer

IMAGE = ImageShape(3, 8, 5)


def moved(function, *tensors):
    with Traffic() as counted:
        function(*tensors)
    return counted


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (lambda a, b: a + b, 30),
        (lambda a, b: a + a, 20),  # what is given twice is read once
        (lambda a, b: a.relu(), 20),
        (lambda a, b: a.relu_(), 20),  # read and written
        (lambda a, b: a.add_(b), 30),
        (lambda a, b: a.copy_(b), 20),  # written over
        (lambda a, b: a.zero_(), 10),
        (lambda a, b: a.view(5, 2).t(), 0),
        (lambda a, b: torch.empty_like(a), 0),
        (lambda a, b: a[:1].expand(10) + b, 21),  # one number that is repeated
        (lambda a, b: a[:4] + a[4:8], 12),  # two parts of one storage
        (lambda a, b: torch._foreach_add_([a, b], [b, b]), 40),
    ],
)
def test_every_operator_reads_and_writes_its_tensors_once(function, numbers):
    counted = moved(function, torch.randn(10), torch.randn(10))
    assert counted.bytes == 4 * numbers
    assert counted.product_bytes == 0


def test_convolutions_and_products_are_told_apart():
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3, requires_grad=True)
    with Traffic() as counted:
        F.conv2d(x, weight, padding=1).relu().sum().backward()
    out, kernel = 2 * 5 * 16, 5 * 3 * 9
    forward, backward = x.numel() + kernel + out, out + x.numel() + kernel + kernel
    assert counted.product_bytes == 4 * (forward + backward)
    assert counted.bytes > counted.product_bytes
    assert moved(torch.mm, torch.randn(2, 3), torch.randn(3, 4)).product_bytes == 4 * (6 + 12 + 8)
    attention = moved(F.scaled_dot_product_attention, *torch.randn(3, 2, 1, 5, 4))
    assert attention.product_bytes >= 4 * 4 * 40  # queries, keys, values and what comes out


def test_numbers_may_be_taken_for_smaller_ones_but_whole_numbers_are_not():
    x, index = torch.randn(10, 3), torch.arange(4)
    with Traffic(2) as counted:
        x.index_select(0, index)
    assert counted.bytes == 2 * 30 + 8 * 4 + 2 * 12


def of_a_step(method, depth, width, batch_size, precision):
    config = step_config("resnet8", method, depth, width)
    train = TrainConfig(batch_size=batch_size, precision=precision)
    return step_traffic(
        build_network(config, IMAGE), IMAGE, train, lambda parameters: build_optimizer(config.optimizer, parameters)
    )


def of_a_real_step(method, depth, width, batch_size):
    setting = Setting(IMAGE, batch_size, torch.device("cpu"), "fp32", 1)
    contender = local(step_config("resnet8", method, depth, width), setting)
    contender.step()
    with Traffic() as counted:
        contender.step()
    return counted


@pytest.mark.parametrize(("method", "depth", "width"), [("e2e", 1, 1), ("gn-dgl", 2, 4), ("predsim", 2, 2)])
def test_a_step_without_data_moves_what_a_real_one_does(method, depth, width, torch_kernels):
    without, real = of_a_step(method, depth, width, 6, "fp32"), of_a_real_step(method, depth, width, 6)
    assert without.operators == real.operators
    assert (without.bytes, without.product_bytes) == (real.bytes, real.product_bytes)


def test_layouts_of_gradients_that_only_a_device_chooses_hardly_matter(torch_kernels):
    without, real = of_a_step("infopro", 2, 1, 6, "fp32"), of_a_real_step("infopro", 2, 1, 6)
    assert without.operators == pytest.approx(real.operators, rel=0.01)
    assert without.bytes == pytest.approx(real.bytes, rel=0.002)


def test_an_operator_that_is_left_out_is_noticed(torch_kernels, monkeypatch):
    real = of_a_real_step("gn-dgl", 2, 4, 6)
    monkeypatch.setattr(traffic, "NOTHING", (*traffic.NOTHING, "convolution"))
    assert of_a_step("gn-dgl", 2, 4, 6, "fp32").bytes < real.bytes


def test_bytes_grow_with_the_batch_and_are_half_as_many_in_bf16():
    small, large, larger = (of_a_step("gn-dgl", 2, 4, n, "fp32") for n in (128, 256, 512))
    assert small.operators == large.operators == larger.operators
    assert larger.bytes - large.bytes == 2 * (large.bytes - small.bytes)
    half = of_a_step("gn-dgl", 2, 4, 512, "bf16")
    assert half.bytes == pytest.approx(larger.bytes / 2, rel=0.001)
    assert half.product_bytes < 0.5 * half.bytes
