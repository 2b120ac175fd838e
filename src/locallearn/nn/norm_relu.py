"""Batch norm, what is added to it, ReLU and the mean over positions, in as few passes as there are kernels for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from locallearn.nn.narrow import NarrowBatchNorm2d
from locallearn.nn.native import norm as native
from locallearn.nn.peers import replicated


def norm_relu(norm: nn.Module, relu: nn.Module, x: Tensor, more: Tensor | None = None) -> Tensor:
    """relu(norm(x) [+ more]), of maps [B, C, H, W].

    Args:
        norm: a batch norm of any kind.
        relu: is called where there is no kernel for both.
        x: maps.
        more: what is added, a residual block's shortcut.
    """
    if _has_kernel(norm, relu, x):
        return _native(norm, x, more, mean=False)
    y = norm(x)
    return relu(y if more is None else y.add_(more))  # a batch norm keeps what came in, not this


def norm_relu_mean(norm: nn.Module, relu: nn.Module, pool: nn.Module, x: Tensor) -> Tensor:
    """The mean over positions of relu(norm(x)), [B, C, H, W] -> [B, C].

    With kernels of our own, no map of it is written or kept; else ``relu`` and ``pool`` are called.
    """
    if _has_kernel(norm, relu, x, mean=True):
        return _native(norm, x, None, mean=True)
    return pool(relu(norm(x)))


def _has_kernel(norm: nn.Module, relu: nn.Module, x: Tensor, *, mean: bool = False) -> bool:
    if type(relu) is not nn.ReLU or type(norm) not in (nn.BatchNorm2d, NarrowBatchNorm2d) or not norm.training:
        return False
    assert isinstance(norm, nn.BatchNorm2d)
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None and not replicated()
    return usual and native.fits(x, mean=mean) and x.numel() > x.shape[1]


def _native(norm: nn.Module, x: Tensor, more: Tensor | None, *, mean: bool) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    if more is not None:
        more = more.to(x.dtype).contiguous(memory_format=torch.channels_last)
    of_batch = native.statistics(x.detach())
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(of_batch.mean, norm.momentum)
        norm.running_var.lerp_(of_batch.variance * (of_batch.numbers / (of_batch.numbers - 1)), norm.momentum)
    return native.norm_relu(x, more, norm.weight, norm.bias, of_batch, norm.eps, mean=mean)
