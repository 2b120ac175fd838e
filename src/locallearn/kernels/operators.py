"""The kernels as operators of torch's own (``torch.ops.locallearn``), which compilers and tensors without data see.

Layers call ``conv`` and ``norm``; what ``torch.compile`` traces of these are the operators here. Each has a rule for
its output's shape, and those that layers call have one for gradients. Values are those of ``conv`` and ``norm``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from locallearn.kernels import conv, norm

_LAST = torch.channels_last


@torch.library.custom_op("locallearn::convolution", mutates_args=(), device_types="cpu")
def convolution(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """A grouped 3x3 convolution: [B, I, H, W], [O, I/G, 3, 3] -> [B, O, H', W']."""
    return conv.convolution(x, weight, stride, groups)


@convolution.register_fake
def _(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    return _maps(x, conv.output_size(x, weight, stride))


@torch.library.custom_op("locallearn::convolution_input_gradient", mutates_args=(), device_types="cpu")
def input_gradient(grad: Tensor, weight: Tensor, stride: int, groups: int, height: int, width: int) -> Tensor:
    """The gradient of its input, [B, I, H, W]."""
    return conv.input_gradient(grad, weight, stride, groups, (height, width))


@input_gradient.register_fake
def _(grad: Tensor, weight: Tensor, stride: int, groups: int, height: int, width: int) -> Tensor:
    return _maps(grad, (len(grad), groups * weight.shape[1], height, width))


@torch.library.custom_op("locallearn::convolution_weight_gradient", mutates_args=(), device_types="cpu")
def weight_gradient(grad: Tensor, x: Tensor, stride: int, groups: int) -> Tensor:
    """The gradient of its weight in fp32, [O, I/G, 3, 3]."""
    return conv.weight_gradient(grad, x, stride, groups)


@weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, stride: int, groups: int) -> Tensor:
    return x.new_empty(grad.shape[1], x.shape[1] // groups, 3, 3, dtype=torch.float32)


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.groups = inputs
    ctx.save_for_backward(x, weight)


def _of_convolution(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight), stride, groups = ctx.saved_tensors, ctx.stride, ctx.groups
    of_x = None
    if ctx.needs_input_grad[0]:
        of_x = torch.ops.locallearn.convolution_input_gradient(grad, weight, stride, groups, *x.shape[2:])
    if conv.torch_is_faster(x, weight, groups):
        own = conv.torch_weight_gradient(grad, x, weight, stride, groups)
    else:
        own = torch.ops.locallearn.convolution_weight_gradient(grad, x, stride, groups)
    return of_x, own.to(weight.dtype), None, None


@torch.library.custom_op("locallearn::batch_statistics", mutates_args=(), device_types="cpu")
def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of maps [B, C, H, W] by channel, [C] in fp32."""
    found = norm.statistics(x)
    return found.mean, found.variance


@batch_statistics.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _by_channel(x), _by_channel(x)


@torch.library.custom_op("locallearn::norm_relu", mutates_args=(), device_types="cpu")
def norm_relu(
    x: Tensor,
    more: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    pooled: bool,
) -> Tensor:
    """relu(norm(x) [+ more]), [B, C, H, W], or its mean over positions, [B, C]; statistics are constants."""
    return norm.forward(x, more, norm.ScaleAndShift.of(x, weight, bias, mean, variance, eps), pooled)


@norm_relu.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    *_, pooled = rest
    return x.new_empty(x.shape[:2]) if pooled else _maps(x, x.shape)


@torch.library.custom_op("locallearn::norm_relu_gradients", mutates_args=(), device_types="cpu")
def norm_relu_gradients(
    grad: Tensor,
    x: Tensor,
    out: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    pooled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of what was added (empty without ``out``), of weight and bias."""
    line = norm.ScaleAndShift.of(x, weight, bias, mean, variance, eps)
    of_x, of_more, of_weight, of_bias = norm.gradients(grad, x, out, line, pooled)
    return of_x, x.new_empty(0) if of_more is None else of_more, of_weight, of_bias.clone()


@norm_relu_gradients.register_fake
def _(grad: Tensor, x: Tensor, out: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_more = x.new_empty(0) if out is None else _maps(x, x.shape)
    return _maps(x, x.shape), of_more, _by_channel(x), _by_channel(x)


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, more, weight, bias, mean, variance, ctx.eps, ctx.pooled = inputs
    ctx.save_for_backward(x, None if more is None else output, weight, bias, mean, variance)


def _of_norm(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, out, *by_channel = ctx.saved_tensors
    of_x, of_more, *more = torch.ops.locallearn.norm_relu_gradients(grad, x, out, *by_channel, ctx.eps, ctx.pooled)
    return of_x, None if out is None else of_more, *more, None, None, None, None


def _maps(like: Tensor, size: Any) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=_LAST)


def _by_channel(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


convolution.register_autograd(_of_convolution, setup_context=_keep_convolution)
norm_relu.register_autograd(_of_norm, setup_context=_keep_norm)
