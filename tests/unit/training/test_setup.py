"""What is left to the machine is decided by what is accurate there."""

import pytest
import torch
import torch.nn.functional as F

from locallearn.nn.native import build
from locallearn.training.setup import channels_last

CPU = torch.device("cpu")
LARGE, SMALL = 1024 * 32 * 32, 128 * 32 * 32


@pytest.mark.usefixtures("torch_kernels")
def test_without_our_kernels_large_batches_are_contiguous():
    assert not channels_last(CPU, "fp32", LARGE)
    assert channels_last(CPU, "fp32", SMALL)
    assert channels_last(torch.device("cuda"), "fp32", LARGE)


@pytest.mark.skipif(len(build.kernels().libraries) < 2, reason="no native kernels here")
def test_with_them_all_are_channels_last():
    assert channels_last(CPU, "fp32", LARGE)
    assert channels_last(CPU, "bf16", LARGE)


def test_batch_norm_is_accurate_in_the_memory_that_is_chosen():
    """One channel of as many numbers as a batch of 1,024 has; the sibling shows what the choice avoids."""
    x = torch.randn(256, 8, 64, 64) + 3
    right = F.batch_norm(x.double(), None, None, training=True)
    for last, bound in ((False, True), (True, False)):
        memory = torch.channels_last if last else torch.contiguous_format
        found = F.batch_norm(x.contiguous(memory_format=memory), None, None, training=True)
        assert ((found - right).abs().max() / right.abs().max() < 1e-6) == bound
