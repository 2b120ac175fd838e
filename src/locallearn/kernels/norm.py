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
    if not build.take(x):
        return False
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    return channels % LANES == 0 or (not mean and LANES % channels == 0 and positions % (LANES // channels) == 0)


def statistics(x: Tensor) -> Statistics:
    """Statistics of maps [B, C, H, W], which are channels-last."""
    if torch.compiler.is_compiling():
        mean, variance = torch.ops.locallearn.batch_statistics(x)
        return Statistics(mean, variance, x.numel() // x.shape[1])
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
    if torch.compiler.is_compiling():
        given = (x, more, weight, bias, of_batch.mean, of_batch.variance, eps, mean)
        return torch.ops.locallearn.norm_relu(*given)  # type: ignore[no-any-return]
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
        line = ScaleAndShift.of(x, weight, bias, of_batch.mean, of_batch.variance, eps)
        out = forward(x, more, line, mean)
        ctx.save_for_backward(x, None if more is None else out, *line)
        ctx.mean = mean
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, out, *line = ctx.saved_tensors
        return *gradients(grads[0], x, out, ScaleAndShift(*line), ctx.mean), None, None, None


class ScaleAndShift(NamedTuple):
    """The norm as scale and shift by channel, as often as maps are read side by side; and what its gradient needs."""

    mean: Tensor
    inv_std: Tensor
    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> ScaleAndShift:
        """From weight, bias and statistics by channel [C]."""
        inv_std = (variance + eps).rsqrt()
        scale = inv_std * weight
        shift = torch.addcmul(bias, mean, scale, value=-1)
        mean, scale, shift = (_repeated(t, _maps(x)) for t in (mean, scale, shift))
        return cls(mean, inv_std, scale, shift)


def forward(x: Tensor, more: Tensor | None, line: ScaleAndShift, mean: bool) -> Tensor:
    """See ``norm_relu``."""
    maps, code, scale, shift = _maps(x), library(x), at(line.scale), at(line.shift)
    if mean:
        out = torch.empty(x.shape[:2], dtype=x.dtype)
        code.normalise_mean(at(x), scale, shift, at(out), ctypes.byref(maps))
    else:
        out = torch.empty_like(x)
        code.normalise(at(x), at(more), scale, shift, at(out), ctypes.byref(maps))
    return out


def gradients(
    grad: Tensor, x: Tensor, out: Tensor | None, line: ScaleAndShift, mean: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Gradients of the input, of what was added (where ``out`` is given), of weight and bias."""
    grad = grad.contiguous(memory_format=torch.contiguous_format if mean else torch.channels_last)
    maps, code, by_channel = _maps(x), library(x), (line.mean, line.scale, line.shift)
    masked = None if out is None else torch.empty_like(x)
    kind = POOLED if mean else POSITIONS
    back = _Backward(*(at(t) for t in (x, grad, out, *by_channel)))
    sums, work = torch.empty(2, maps.channels), torch.empty(len(x), 2, maps.channels)
    code.gradient_sums(ctypes.byref(back), kind, at(masked), at(sums), at(work), ctypes.byref(maps))
    of_grad, of_product = sums.view(2, -1, x.shape[1]).sum(1)
    count = x.numel() // x.shape[1]
    first, second = (_repeated(t / count, maps) for t in (of_grad, of_product * line.inv_std.square()))
    if masked is not None:
        back, kind = _Backward(*(at(t) for t in (x, masked, None, *by_channel))), MASKED
    grad_x = torch.empty_like(x)
    code.gradient_of_input(ctypes.byref(back), kind, at(first), at(second), at(grad_x), ctypes.byref(maps))
    return grad_x, masked, of_product * line.inv_std, of_grad


def library(x: Tensor) -> Any:
    """The compiled code for numbers of this type."""
    return build.kernels().libraries[x.dtype]


def _maps(x: Tensor) -> _Maps:
    images, channels, height, width = x.shape
    side_by_side = max(LANES // channels, 1)
    return _Maps(images, height * width // side_by_side, channels * side_by_side)


def _repeated(values: Tensor, maps: _Maps) -> Tensor:
    return values if len(values) == maps.channels else values.repeat(maps.channels // len(values))
