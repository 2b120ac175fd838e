"""Batch norm of maps in training with the ReLU after it (``norm.c``)."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locallearn.nn.native import build
from locallearn.nn.native.build import LANES, at

_POSITIONS, _POOLED, _MASKED = range(3)


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


def fits(x: Tensor) -> bool:
    """Whether there are kernels for these maps."""
    return build.kernels().take(x) and x.shape[1] % LANES == 0


def statistics(x: Tensor) -> Statistics:
    """Statistics of maps [B, C, H, W], which are channels-last."""
    maps, channels = _maps(x), x.shape[1]
    mean, variance, work = torch.empty(channels), torch.empty(channels), torch.empty(len(x), 2, channels)
    _library(x).statistics(at(x), at(mean), at(variance), at(work), ctypes.byref(maps))
    return Statistics(mean, variance, x.numel() // channels)


def norm_relu(
    x: Tensor, more: Tensor | None, weight: Tensor, bias: Tensor, of_batch: Statistics, eps: float, *, mean: bool
) -> Tensor:
    """relu(norm(x) [+ more]), or its mean over positions.

    What is kept for the backward pass is x, and the output where something was added: else the mask is made of x
    again.

    Args:
        x: [B, C, H, W], channels-last, as :func:`fits` allows.
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
    """See :func:`norm_relu`."""

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
        inv_std = (of_batch.variance + eps).rsqrt()
        scale = inv_std * weight
        shift = torch.addcmul(bias, of_batch.mean, scale, value=-1)
        maps, library = _maps(x), _library(x)
        if mean:
            out = torch.empty(x.shape[:2], dtype=x.dtype)
            library.normalise_mean(at(x), at(scale), at(shift), at(out), ctypes.byref(maps))
        else:
            out = torch.empty_like(x)
            library.normalise(at(x), at(more), at(scale), at(shift), at(out), ctypes.byref(maps))
        ctx.save_for_backward(x, None if more is None else out, of_batch.mean, inv_std, scale, shift)
        ctx.mean = mean
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, out, mean, inv_std, scale, shift = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.contiguous_format if ctx.mean else torch.channels_last)
        maps, library, channels = _maps(x), _library(x), x.shape[1]
        masked = None if out is None else torch.empty_like(x)
        kind = _POOLED if ctx.mean else _POSITIONS
        back = _Backward(*(at(t) for t in (x, grad, out, mean, scale, shift)))
        sums, work = torch.empty(2, channels), torch.empty(len(x), 2, channels)
        library.gradient_sums(ctypes.byref(back), kind, at(masked), at(sums), at(work), ctypes.byref(maps))
        count = x.numel() // channels
        first, second = sums[0] / count, sums[1] * inv_std.square() / count
        if masked is not None:
            back, kind = _Backward(*(at(t) for t in (x, masked, None, mean, scale, shift))), _MASKED
        grad_x = torch.empty_like(x)
        library.gradient_of_input(ctypes.byref(back), kind, at(first), at(second), at(grad_x), ctypes.byref(maps))
        return grad_x, masked, sums[1] * inv_std, sums[0], None, None, None


def _library(x: Tensor) -> Any:
    return build.kernels().libraries[x.dtype]


def _maps(x: Tensor) -> _Maps:
    images, channels, height, width = x.shape
    return _Maps(images, height * width, channels)
