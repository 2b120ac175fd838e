"""Batch norm of maps in training with the ReLU after it (``norm.c``).

Maps of fewer channels than a vector has numbers are read as maps of n times the channels and an n-th of the
positions; what is by channel is repeated n times, and statistics and sums of the n are taken together.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locallearn.first_order import first_order
from locallearn.kernels import build
from locallearn.kernels.build import LANES, at

POSITIONS, POOLED, MASKED = range(3)
"""Which gradient comes from above: of every position, of their mean, or one that is masked already."""


class _Maps(ctypes.Structure):
    """``Maps`` of norm.c."""

    _fields_ = [(name, ctypes.c_int) for name in ("images", "positions", "channels")]


class _Backward(ctypes.Structure):
    """``Backward`` of norm.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "grad", "out", "mean", "scale", "shift")]


class Statistics(NamedTuple):
    """Of a batch, by channel [C]: mean, variance (biased) and how many numbers they are of."""

    mean: Tensor
    variance: Tensor
    numbers: int


def fits(x: Tensor, *, mean: bool = False) -> bool:
    """Whether there are kernels for these maps, and with ``mean`` for their mean over positions."""
    if not build.kernels().take(x):
        return False
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    return channels % LANES == 0 or (not mean and LANES % channels == 0 and positions % (LANES // channels) == 0)


def statistics(x: Tensor) -> Statistics:
    """Statistics of maps [B, C, H, W], which are channels-last."""
    maps, count = _maps(x), x.numel() // x.shape[1]
    mean, variance, work = (
        torch.empty(maps.channels),
        torch.empty(maps.channels),
        torch.empty(len(x), 2, maps.channels),
    )
    library(x).statistics(at(x), at(mean), at(variance), at(work), ctypes.byref(maps))
    if maps.channels == x.shape[1]:
        return Statistics(mean, variance, count)
    means = mean.view(-1, x.shape[1])
    mean = means.mean(0)
    return Statistics(mean, variance.view_as(means).mean(0) + (means - mean).square_().mean(0), count)


def norm_relu(
    x: Tensor, more: Tensor | None, weight: Tensor, bias: Tensor, of_batch: Statistics, eps: float, *, mean: bool
) -> Tensor:
    """relu(norm(x) [+ more]), or its mean over positions.

    What is kept for the backward pass is x, and the output where something was added: else the mask is made of x
    again.

    Args:
        x: [B, C, H, W], channels-last, as ``fits`` allows.
        more: what is added, like x, or None.
        weight: of the norm, [C] in fp32.
        bias: likewise.
        of_batch: of x.
        eps: is added to the variance.
        mean: whether the mean over positions is wanted, [B, C]; not with ``more``.
    """
    out = _NormRelu.apply(x, more, weight, bias, of_batch, eps, mean)
    assert isinstance(out, Tensor)
    return out


class _NormRelu(torch.autograd.Function):
    """See ``norm_relu``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        more: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        of_batch: Statistics,
        eps: float,
        mean: bool,
    ) -> Tensor:
        maps, code = _maps(x), library(x)
        inv_std = (of_batch.variance + eps).rsqrt()
        scale = inv_std * weight
        shift = torch.addcmul(bias, of_batch.mean, scale, value=-1)
        mu, scale, shift = (_repeated(t, maps) for t in (of_batch.mean, scale, shift))
        if mean:
            out = torch.empty(x.shape[:2], dtype=x.dtype)
            code.normalise_mean(at(x), at(scale), at(shift), at(out), ctypes.byref(maps))
        else:
            out = torch.empty_like(x)
            code.normalise(at(x), at(more), at(scale), at(shift), at(out), ctypes.byref(maps))
        ctx.save_for_backward(x, None if more is None else out, mu, inv_std, scale, shift)
        ctx.mean = mean
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, out, mu, inv_std, scale, shift = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.contiguous_format if ctx.mean else torch.channels_last)
        maps, code = _maps(x), library(x)
        masked = None if out is None else torch.empty_like(x)
        kind = POOLED if ctx.mean else POSITIONS
        back = _Backward(*(at(t) for t in (x, grad, out, mu, scale, shift)))
        sums, work = torch.empty(2, maps.channels), torch.empty(len(x), 2, maps.channels)
        code.gradient_sums(ctypes.byref(back), kind, at(masked), at(sums), at(work), ctypes.byref(maps))
        of_grad, of_product = sums.view(2, -1, x.shape[1]).sum(1)
        count = x.numel() // x.shape[1]
        first, second = (_repeated(t / count, maps) for t in (of_grad, of_product * inv_std.square()))
        if masked is not None:
            back, kind = _Backward(*(at(t) for t in (x, masked, None, mu, scale, shift))), MASKED
        grad_x = torch.empty_like(x)
        code.gradient_of_input(ctypes.byref(back), kind, at(first), at(second), at(grad_x), ctypes.byref(maps))
        return grad_x, masked, of_product * inv_std, of_grad, None, None, None


def library(x: Tensor) -> Any:
    """The compiled code for numbers of this type."""
    return build.kernels().libraries[x.dtype]


def _maps(x: Tensor) -> _Maps:
    images, channels, height, width = x.shape
    side_by_side = max(LANES // channels, 1)
    return _Maps(images, height * width // side_by_side, channels * side_by_side)


def _repeated(values: Tensor, maps: _Maps) -> Tensor:
    return values if len(values) == maps.channels else values.repeat(maps.channels // len(values))
