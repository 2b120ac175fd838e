"""Grouped layers: G groups stacked by rows, so that all groups compute as one batched operation.

Group g of G owns rows [g n/G, (g+1) n/G) of every parameter and buffer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 8
"""A convolution of fewer channels a group takes as long as one of this many, or longer."""

GRADIENT_LANES = 16
"""The same of the input gradient of a stop-gradient convolution, which has more rows than columns."""


def conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int, dense: bool) -> nn.Conv2d:
    """A convolution without bias, split into channel groups; ``dense`` lets every group see all input channels."""
    kind = nn.Conv2d if dense or packed_together(inputs, outputs, groups) == 1 else PackedConv2d
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, groups=1 if dense else groups, bias=False)


def packed_together(inputs: int, outputs: int, groups: int, least: int | None = None) -> int:
    """How many groups to compute as one to have ``least`` channels (:data:`LANES`): a divisor of ``groups``."""
    smaller, least = min(inputs, outputs) // groups, least or LANES
    return next((n for n in range(1, groups) if groups % n == 0 and n * smaller >= least), groups)


def pack(weight: Tensor, groups: int, together: int) -> Tensor:
    """Weights of G groups, [O, I/G, k, k], as those of G/n groups, [O, n I/G, k, k]: block-diagonal."""
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


class _PackedConv(torch.autograd.Function):
    """A grouped convolution computed as one of fewer groups. Packed weights are made again and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int, together: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups, ctx.together = stride, groups, together
        packed = pack(weight, groups, together)
        return F.conv2d(x, packed, stride=stride, padding=weight.shape[-1] // 2, groups=groups // together)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        packed = pack(weight, ctx.groups, ctx.together)
        mask = (ctx.needs_input_grad[0], True, False)
        grad_x, grad, _ = _conv_backward(grads[0], x, packed, ctx.stride, ctx.groups // ctx.together, mask)
        own = _blocks(grad.contiguous(), ctx.groups, ctx.together).reshape(weight.shape)
        return grad_x if mask[0] else None, own, None, None, None


class PackedConv2d(nn.Conv2d):
    """A grouped convolution that, in training, computes several small groups as one.

    Weights and values are those of the grouped convolution. Groups of fewer than :data:`LANES` channels leave most of
    a vector unused; as one block-diagonal convolution they take two thirds to a third of the time in bf16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        if not self.training:  # what is exported keeps its groups
            return super().forward(input)
        together = packed_together(self.in_channels, self.out_channels, self.groups)
        out = _PackedConv.apply(*_autocast(input, self.weight), self.stride[0], self.groups, together)
        assert isinstance(out, Tensor)
        return out


def _autocast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cast as autocast does, which does not look inside a custom function."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return x.to(dtype), weight.to(dtype)
    return x, weight


class GroupLinear(nn.Module):
    """G independent linear layers as one batched matrix product.

    Args:
        groups: G.
        inputs: features that each group sees.
        outputs: features that each group makes.

    Shapes: input [G, B, inputs], output [G, B, outputs], weight [G * outputs, inputs], bias [G * outputs].
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.groups, self.inputs, self.outputs = groups, inputs, outputs
        self.weight = nn.Parameter(torch.empty(groups * outputs, inputs))
        self.bias = nn.Parameter(torch.empty(groups * outputs))

    def forward(self, x_GBI: Tensor) -> Tensor:
        """Apply group g's layer to ``x_GBI[g]``."""
        if self.groups == 1:  # the plain layer, bit for bit
            return F.linear(x_GBI[0], self.weight, self.bias)[None]
        weight_GIO = self.weight.view(self.groups, self.outputs, self.inputs).transpose(1, 2)
        return torch.baddbmm(self.bias.view(self.groups, 1, self.outputs), x_GBI, weight_GIO)


class _StopGradientConv(torch.autograd.Function):
    """Every group convolves all channels, but only its own channels receive a gradient from it.

    Forward is one dense convolution and so is the weight's gradient; the input's gradient is a grouped
    convolution, 1/G of the work, and the backward pass of the detached channels is never computed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups = stride, groups
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            own, groups = _own_channels(weight, ctx.groups), ctx.groups
            together = packed_together(x.shape[1], weight.shape[0], groups, GRADIENT_LANES)
            if together > 1:
                own = pack(own, groups, together)
            grad_x = _conv_backward(grads[0], x, own, ctx.stride, groups // together, (True, False, False))[0]
        if ctx.needs_input_grad[1]:
            grad_weight = _conv_backward(grads[0], x, weight, ctx.stride, 1, (False, True, False))[1]
        return grad_x, grad_weight, None, None


def _own_channels(weight: Tensor, groups: int) -> Tensor:
    """From the rows of group g, the columns of group g's channels: [G n, C, k, k] -> [G n, C/G, k, k]."""
    rows, channels, height, width = weight.shape
    blocks = weight.view(groups, rows // groups, groups, channels // groups, height, width)
    own = blocks.diagonal(dim1=0, dim2=2).permute(4, 0, 1, 2, 3)
    return own.reshape(rows, channels // groups, height, width)


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    pad = weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, (stride, stride), (pad, pad), (1, 1), False, (0, 0), groups, mask
    )


class StopGradientConv2d(nn.Module):
    """The first convolution of G heads that each see all C channels, their own C/G with gradient (Algorithm 2).

    Args:
        channels: C.
        outputs: channels that each head makes.
        stride: stride.
        groups: G; C must be a multiple of it.

    Shapes: input [B, C, H, W], output [B, G * outputs, H', W'], weight [G * outputs, C, 3, 3].
    """

    def __init__(self, channels: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(groups * outputs, channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the values are those of a dense convolution."""
        out = _StopGradientConv.apply(*_autocast(x, self.weight), self.stride, self.groups)
        assert isinstance(out, Tensor)
        return out


def stop_gradient_vectors(x_BC: Tensor, groups: int) -> Tensor:
    """What G heads without convolutions see: all C features, their own with gradient, [B, C] -> [G, B, C]."""
    channels = x_BC.shape[1]
    owner_C = torch.arange(channels, device=x_BC.device) // (channels // groups)
    own_G1C = (owner_C[None] == torch.arange(groups, device=x_BC.device)[:, None])[:, None]
    return torch.where(own_G1C, x_BC[None], x_BC.detach()[None])


def split_vectors(x_BC: Tensor, groups: int) -> Tensor:
    """Each group's own features, [B, C] -> [G, B, C/G]."""
    return x_BC.view(x_BC.shape[0], groups, -1).transpose(0, 1)
