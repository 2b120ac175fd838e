"""Grouped layers: G groups stacked by rows, so that all groups compute as one batched operation.

Group g of G owns rows [g n/G, (g+1) n/G) of every parameter and buffer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.nn import peers


def conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int, dense: bool) -> nn.Conv2d:
    """A convolution without bias, split into channel groups; ``dense`` lets every group see all input channels."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=1 if dense else groups, bias=False)


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


class OwnChannels(nn.Module):
    """The channels of some groups, [B, C, ...] -> [B, C n / G, ...].

    Args:
        groups: n contiguous ones, counted from 0.
        total: G.
    """

    def __init__(self, groups: range, total: int) -> None:
        super().__init__()
        self.own, self.total = groups, total

    def forward(self, x: Tensor) -> Tensor:
        """Take them."""
        n = x.shape[1] // self.total
        return x[:, self.own.start * n : self.own.stop * n]


class _StopGradientConv(torch.autograd.Function):
    """Every group convolves all channels, but only its own channels receive a gradient from it.

    Forward is one dense convolution and so is the weight's gradient; the input's gradient is a grouped
    convolution, 1/G of the work, and the backward pass of the detached channels is never computed. ``seen`` are
    all channels, ``own`` those of the groups on this rank, of which ``first`` is the first.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, seen: Tensor, weight: Tensor, stride: int, groups: int, first: int) -> Tensor:
        ctx.save_for_backward(own, seen, weight)
        ctx.stride, ctx.groups, ctx.first = stride, groups, first
        return F.conv2d(seen, weight, stride=stride, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        own, seen, weight = ctx.saved_tensors
        grad_own = grad_weight = None
        if ctx.needs_input_grad[0]:
            columns = _own_channels(weight, ctx.groups, own.shape[1] // ctx.groups, ctx.first)
            grad_own = _conv_backward(grads[0], own, columns, ctx.stride, ctx.groups, (True, False, False))[0]
        if ctx.needs_input_grad[2]:
            grad_weight = _conv_backward(grads[0], seen, weight, ctx.stride, 1, (False, True, False))[1]
        return grad_own, None, grad_weight, None, None, None


def _own_channels(weight: Tensor, groups: int, channels: int, first: int) -> Tensor:
    """From the rows of n groups, the columns of each group's own c channels: [n r, C, k, k] -> [n r, c, k, k]."""
    rows, _, height, width = weight.shape
    blocks = weight.view(groups, rows // groups, -1, channels, height, width)
    own = blocks.diagonal(offset=first, dim1=0, dim2=2).permute(4, 0, 1, 2, 3)
    return own.reshape(rows, channels, height, width)


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

    Shapes: input [B, C, H, W], output [B, G * outputs, H', W'], weight [G * outputs, C, 3, 3]. On a rank that has
    n of the G groups the input is their channels, and the output and weight are their rows.
    """

    def __init__(self, channels: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.empty(groups * outputs, channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the values are those of a dense convolution."""
        device, weight = x.device.type, self.weight
        # autocast does not look inside a custom function
        if device != "meta" and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
        others = peers.current()
        seen = others.gather_groups(x.detach(), 1)
        out = _StopGradientConv.apply(x, seen, weight, self.stride, self.groups, others.index * self.groups)
        assert isinstance(out, Tensor)
        return out


def stop_gradient_vectors(x_BC: Tensor, groups: int) -> Tensor:
    """What G heads without convolutions see: all C features, their own with gradient, [B, C] -> [G, B, C].

    On a rank that has n of the G groups, [B, C n/G] -> [n, B, C].
    """
    others, own_channels = peers.current(), x_BC.shape[1] // groups
    x_BC = others.gather_groups(x_BC, 1)
    owner_C = torch.arange(x_BC.shape[1], device=x_BC.device) // own_channels
    group_G = torch.arange(groups, device=x_BC.device) + others.index * groups
    own_G1C = (owner_C[None] == group_G[:, None])[:, None]
    return torch.where(own_G1C, x_BC[None], x_BC.detach()[None])


def split_vectors(x_BC: Tensor, groups: int) -> Tensor:
    """Each group's own features, [B, C] -> [G, B, C/G]."""
    return x_BC.view(x_BC.shape[0], groups, -1).transpose(0, 1)
