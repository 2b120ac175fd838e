import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locallearn.nn.similarity import PooledClassifier, SimilarityHead, pooled_sides


def published_sides(channels, size, limit):
    """Sides after the pooling of Nokland and Eidnes's code, for square maps: kernels of height and width in turn."""
    kernel_h = kernel_w = 1
    h = w = size
    inputs = channels * h * w
    while inputs > limit and kernel_h < size:
        kernel_h *= 2
        h = math.ceil(size / kernel_h)
        inputs = channels * h * w
        if inputs > limit:
            kernel_w *= 2
            w = math.ceil(size / kernel_w)
            inputs = channels * h * w
    return h, w


@given(st.integers(1, 600), st.integers(1, 33), st.integers(1, 5000))
def test_pooling_is_that_of_the_published_code(channels, size, limit):
    assert pooled_sides(channels, (size, size), limit) == published_sides(channels, size, limit)


@pytest.mark.parametrize(
    ("channels", "size", "sides"), [(128, 32, (4, 4)), (256, 16, (2, 4)), (512, 8, (2, 2)), (512, 4, (2, 2))]
)
def test_sides_of_vgg6a(channels, size, sides):
    assert pooled_sides(channels, (size, size), 2048) == sides


def test_more_channels_than_inputs_are_pooled_to_one_position():
    classifier = PooledClassifier((64, 8, 8), 10, 1, False, 32)
    assert classifier.linear.inputs == 64


def test_pooled_classifier_averages_what_it_pools():
    classifier = PooledClassifier((2, 4, 4), 3, 1, False, 8)
    with torch.no_grad():
        classifier.linear.weight.normal_()
        classifier.linear.bias.zero_()
    x = torch.randn(5, 2, 4, 4)
    pooled = x.view(5, 2, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    torch.testing.assert_close(classifier(x)[0], pooled @ classifier.linear.weight.T)


def test_maps_of_one_position_stand_for_themselves():
    head = SimilarityHead((6, 1, 1), 2, False)
    x = torch.randn(5, 6, 1, 1)
    expected = head.layer(x).flatten(1).view(5, 2, 3).transpose(0, 1)
    assert torch.equal(head(x), expected)


def test_a_channel_that_is_the_same_everywhere_passes_no_nan_back():
    head = SimilarityHead((2, 3, 3), 1, False)
    x = torch.zeros(4, 2, 3, 3, requires_grad=True)
    head(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_standard_deviation_of_bf16_maps_is_fp32():
    head = SimilarityHead((4, 8, 8), 1, False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(2, 4, 8, 8)).dtype == torch.float32
