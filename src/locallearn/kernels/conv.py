"""Grouped 3x3 convolutions (``conv.c``).

Torch's grouped convolutions fill a vector with one group's channels, so that groups of 4 cost what groups of 16 do,
or more. These fill it with several groups.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from locallearn import processor
from locallearn.first_order import first_order
from locallearn.kernels import build
from locallearn.kernels.build import LANES, at

_WIDEST = 256
"""Channels up to which weights of a convolution without groups stay in the caches."""

_TILED = 8
"""Input channels a group from which on tiles multiply them faster than our vectors do (benchmarks/NOTES.md)."""


class _Shape(ctypes.Structure):
    """``Shape`` of conv.c."""

    _fields_ = [
        (name, ctypes.c_int)
        for name in ("images", "inputs", "outputs", "groups", "stride", "height", "width", "rows", "columns")
    ]


def fits(x: Tensor, inputs: int, outputs: int, groups: int) -> bool:
    """Whether there is a kernel for this input, and channels from ``inputs`` to ``outputs`` in groups."""
    if not build.take(x):
        return False
    seen, made = inputs // groups, outputs // groups
    pair = build.pair(x.dtype)
    if inputs % LANES or outputs % LANES or seen % pair:
        return False
    if made >= LANES or seen <= made * pair:
        return made % LANES == 0 or LANES % made == 0
    return LANES % made == 0 and groups.bit_count() == 1 and inputs % (2 * LANES * pair) == 0  # can be interleaved


def fits_weight(x: Tensor, inputs: int, outputs: int, groups: int) -> bool:
    """Whether there are kernels for it and for the gradient of its weight."""
    return fits(x, inputs, outputs, groups) and (outputs // groups >= LANES or inputs <= outputs)


def ahead(x: Tensor, inputs: int, outputs: int) -> bool:
    """Whether all kernels of a convolution without groups are faster than torch's, which are slow there in bf16."""
    slow = x.dtype == torch.bfloat16 and _slow_in_bf16()
    return slow and inputs <= _WIDEST and fits_weight(x, inputs, outputs, 1)


def behind(x: Tensor, channels: int) -> bool:
    """Whether torch multiplies tiles faster than our kernels multiply vectors, of so many channels a group."""
    return x.dtype == torch.bfloat16 and channels >= _TILED and _multiplies_tiles()


@torch.compiler.assume_constant_result
def _slow_in_bf16() -> bool:
    return processor.slow_in_bf16()


@torch.compiler.assume_constant_result
def _multiplies_tiles() -> bool:
    return processor.multiplies_tiles()


def grouped(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """``convolution``, with gradients for the input and the weight."""
    if torch.compiler.is_compiling():
        return convolution(x, weight, stride, groups)
    out = _Grouped.apply(x, weight, stride, groups)
    assert isinstance(out, Tensor)
    return out


class _Grouped(torch.autograd.Function):
    """See ``grouped``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups = stride, groups
        return convolution(x, weight, stride, groups)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (grad,), (x, weight), stride, groups = grads, ctx.saved_tensors, ctx.stride, ctx.groups
        grad_x = input_gradient(grad, weight, stride, groups, x.shape[2:]) if ctx.needs_input_grad[0] else None
        if torch_is_faster(x, weight, groups):
            own = torch_weight_gradient(grad, x, weight, stride, groups)
        else:
            own = weight_gradient(grad, x, stride, groups)
        return grad_x, own.to(weight.dtype), None, None


def torch_is_faster(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether torch's gradient of the weight is."""
    return x.dtype == torch.float32 and len(weight) >= LANES * groups


def torch_weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """``weight_gradient`` by torch."""
    sizes = ((stride, stride), (1, 1), (1, 1), False, (0, 0), groups, (False, True, False))
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *sizes)[1]  # type: ignore[no-any-return]


def convolution(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """A grouped convolution with padding 1: [B, I, H, W], [O, I/G, 3, 3] -> [B, O, H', W'], channels-last.

    Args:
        x: in bf16 or fp32, as ``fits`` allows.
        weight: is rounded to the same type.
        stride: 1 or 2.
        groups: G.
    """
    if torch.compiler.is_compiling():
        return torch.ops.locallearn.convolution(x, weight, stride, groups)  # type: ignore[no-any-return]
    size = output_size(x, weight, stride)
    return _convolve(x, weight, size, stride, groups, gradient=False)


def input_gradient(grad: Tensor, weight: Tensor, stride: int, groups: int, sides: Sequence[int]) -> Tensor:
    """The gradient of its input, from that of its output: [B, O, H', W'], [O, I/G, 3, 3] -> [B, I, H, W].

    Args:
        grad: in bf16 or fp32, as ``fits`` allows of a convolution from O to I channels.
        weight: is rounded to the same type.
        stride: 1 or 2, of the convolution.
        groups: G.
        sides: H and W.
    """
    if torch.compiler.is_compiling():
        return torch.ops.locallearn.convolution_input_gradient(grad, weight, stride, groups, *sides)  # type: ignore[no-any-return]
    size = (len(grad), groups * weight.shape[1], *sides)
    return _convolve(grad, weight, size, 1 if stride == 1 else -2, groups, gradient=True)


def _convolve(
    x: Tensor, weight: Tensor, size: tuple[int, ...], stride: int, groups: int, *, gradient: bool
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)  # a gradient may have another layout
    weight = weight.to(x.dtype, memory_format=torch.contiguous_format)
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    shape = _shape(x, out, stride, groups)
    _check(
        build.kernels().libraries[x.dtype].convolve(at(x), at(weight), at(out), ctypes.byref(shape), int(gradient))
    )
    return out


def weight_gradient(grad: Tensor, x: Tensor, stride: int, groups: int) -> Tensor:
    """The gradient of its weight, in fp32: [B, O, H', W'], [B, I, H, W] -> [O, I/G, 3, 3].

    Args:
        grad: of the output, in the input's type.
        x: the input, as ``fits_weight`` allows.
        stride: 1 or 2.
        groups: G.
    """
    if torch.compiler.is_compiling():
        return torch.ops.locallearn.convolution_weight_gradient(grad, x, stride, groups)  # type: ignore[no-any-return]
    grad, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    out = torch.empty(grad.shape[1], x.shape[1] // groups, 3, 3)
    shape = _shape(x, grad, stride, groups)
    _check(build.kernels().libraries[x.dtype].weight_gradient(at(grad), at(x), at(out), ctypes.byref(shape)))
    return out


def output_size(x: Tensor, weight: Tensor, stride: int) -> tuple[int, ...]:
    """Of ``convolution``."""
    return (len(x), len(weight), *((side - 1) // stride + 1 for side in x.shape[2:]))


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("a convolution has no memory for its scratch space")


def _shape(x: Tensor, out: Tensor, stride: int, groups: int) -> _Shape:
    images, inputs, height, width = x.shape
    return _Shape(images, inputs, out.shape[1], groups, stride, height, width, *out.shape[2:])
