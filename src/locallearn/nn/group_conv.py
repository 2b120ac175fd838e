"""Convolutions of G channel groups at once, in three ways of which the fastest is taken.

Kernels of our own where there are some (``locallearn.kernels``); else, where groups have few channels, torch's
convolution of fewer and larger ones with zeros between (packing); else torch's grouped convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.first_order import first_order
from locallearn.nn import dense
from locallearn.nn.native import conv as native
from locallearn.nn.precision import as_autocast

LANES = 8
"""A convolution of fewer channels a group takes torch as long as one of this many, or longer."""

WHOLE = 16
"""A convolution of no more channels than this, over all groups, is packed as one: threads that split it by groups
would write to the same cache lines."""

TILE = 64
"""Both on a GPU: its tensor cores compute tiles of so many channels, which libraries fill where there are no
groups. A prediction, for no GPU was at hand (benchmarks/NOTES.md)."""


def conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int, dense: bool) -> nn.Conv2d:
    """A convolution without bias, split into channel groups; ``dense`` lets every group see all input channels."""
    groups = 1 if dense else groups
    kind = nn.Conv2d if groups == 1 and kernel == 1 and (stride == 1 or inputs >= 16) else GroupConv2d
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class GroupConv2d(nn.Conv2d):
    """A convolution without bias, with padding of half its kernel.

    Weights and values are those of ``nn.Conv2d``, but for the order of sums. What is kept for the backward pass is
    the input and the weight itself, never a rounded or packed copy of it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        if not self.training:  # what is exported keeps its groups
            return super().forward(input)
        x, sizes, stride = as_autocast(input), (self.in_channels, self.out_channels, self.groups), self.stride[0]
        if self._thin_out_first(x):
            x = x[:, :, ::stride, ::stride]
            stride = 1
        if self._native_is_faster(x, stride):
            out = native.grouped(x, self.weight, stride, self.groups)
        elif self.groups > 1:
            together = packed_together(*sizes, on_gpu=x.is_cuda)
            out = _PackedConv.apply(x, self.weight, stride, self.groups, together)
        elif stride != self.stride[0]:
            out = F.conv2d(x, self.weight, groups=self.groups)
        else:
            out = super().forward(input)
        assert isinstance(out, Tensor)
        return out

    def _thin_out_first(self, x: Tensor) -> bool:
        """Whether a 1x1 convolution is of the positions that it keeps, which is the same.

        oneDNN's gradient of the weight ends the process on large channels-last maps of fewer than 16 channels, where
        the stride is not 1 (torch 2.13).
        """
        strided = self.kernel_size == (1, 1) and self.stride[0] > 1
        return strided and not x.is_cuda and self.in_channels < 16 and x.shape[2] * x.shape[3] > 1024

    def _native_is_faster(self, x: Tensor, stride: int) -> bool:
        if self.kernel_size != (3, 3):
            return False
        if self.groups > 1 or (x.dtype == torch.float32 and self.in_channels == native.LANES):
            fits = native.fits_weight(x, self.in_channels, self.out_channels, self.groups)
            return fits and not (stride == 1 and native.behind(x, self.in_channels // self.groups))
        return native.ahead(x, self.in_channels, self.out_channels)


class _PackedConv(torch.autograd.Function):
    """A grouped convolution computed by torch as one of fewer groups. Packed weights are made again and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int, together: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups, ctx.together = stride, groups, together
        packed = pack(weight.to(x.dtype), groups, together)
        return F.conv2d(x, packed, stride=stride, padding=weight.shape[-1] // 2, groups=groups // together)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        packed = pack(weight.to(x.dtype), ctx.groups, ctx.together)
        mask = (ctx.needs_input_grad[0], True, False)
        grad_x, grad, _ = dense.backward(grads[0], x, packed, ctx.stride, ctx.groups // ctx.together, mask)
        if ctx.together > 1:
            grad = _blocks(grad.contiguous(), ctx.groups, ctx.together).reshape(weight.shape)
        return grad_x if mask[0] else None, grad.to(weight.dtype), None, None, None


def packed_together(inputs: int, outputs: int, groups: int, least: int | None = None, *, on_gpu: bool = False) -> int:
    """How many groups to compute as one: a divisor of ``groups``.

    All of them where there are few channels (``WHOLE``), else enough to have ``least`` (``LANES``); on a GPU
    ``TILE`` for both.
    """
    whole, least = (TILE, TILE) if on_gpu else (WHOLE, least or LANES)
    if inputs <= whole:
        return groups
    smaller = min(inputs, outputs) // groups
    return next((n for n in range(1, groups) if groups % n == 0 and n * smaller >= least), groups)


def pack(weight: Tensor, groups: int, together: int) -> Tensor:
    """Weights of G groups, [O, I/G, k, k], as those of G/n groups, [O, n I/G, k, k]: block-diagonal."""
    if together == 1:
        return weight
    rows, channels, height, width = weight.shape
    packed = weight.new_zeros(rows, together * channels, height, width)
    _blocks(packed, groups, together).copy_(
        weight.view(groups // together, together, rows // groups, channels, height, width)
    )
    last = weight.is_contiguous(memory_format=torch.channels_last)  # in another layout than its input it is reordered
    return packed.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _blocks(packed: Tensor, groups: int, together: int) -> Tensor:
    """The blocks on the diagonal of packed weights, as a view [G/n, n, O/G, I/G, k, k]."""
    rows, channels, height, width = packed.shape
    shape = (groups // together, together, rows // groups, together, channels // together, height, width)
    return packed.view(shape).diagonal(dim1=1, dim2=3).movedim(-1, 1)
