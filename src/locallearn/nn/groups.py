"""Grouped layers: G groups stacked by rows, so that all groups compute as one batched operation.

Group g of G owns rows [g n/G, (g+1) n/G) of every parameter and buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.first_order import first_order
from locallearn.nn import dense, peers
from locallearn.nn.group_conv import pack, packed_together
from locallearn.nn.native import conv as native
from locallearn.nn.precision import as_autocast

GRADIENT_LANES = 16
"""Torch's input gradient of a stop-gradient convolution, which has more rows than columns, takes as long for fewer
channels a group as for this many."""


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
        return dense.forward(seen, weight, stride)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None, None]:
        own, seen, weight = ctx.saved_tensors
        grad_own = grad_weight = None
        if ctx.needs_input_grad[0]:
            columns = own_channels(weight, ctx.groups, own.shape[1] // ctx.groups, ctx.first)
            grad_own = _own_gradient(grads[0], own, columns, ctx.stride, ctx.groups)
        if ctx.needs_input_grad[2]:
            grad_weight = dense.weight_gradient(grads[0], seen, weight, ctx.stride)
        return grad_own, None, grad_weight, None, None, None


def _own_gradient(grad: Tensor, own: Tensor, columns: Tensor, stride: int, groups: int) -> Tensor:
    """The input gradient of the grouped convolution of every group's own channels."""
    fits = columns.shape[-1] == 3 and native.fits(own, grad.shape[1], own.shape[1], groups)
    if fits and not native.behind(own, own.shape[1] // groups):
        return native.input_gradient(grad, columns, stride, groups, own.shape[2:])
    together = packed_together(own.shape[1], grad.shape[1], groups, GRADIENT_LANES, on_gpu=own.is_cuda)
    return dense.backward(
        grad, own, pack(columns, groups, together), stride, groups // together, (True, False, False)
    )[0]


def own_channels(weight: Tensor, groups: int, channels: int, first: int) -> Tensor:
    """From the rows of n groups, the columns of each group's own c channels: [n r, C, k, k] -> [n r, c, k, k]."""
    rows, _, height, width = weight.shape
    blocks = weight.view(groups, rows // groups, -1, channels, height, width)
    own = blocks.diagonal(offset=first, dim1=0, dim2=2).permute(4, 0, 1, 2, 3)
    return own.reshape(rows, channels, height, width)


class StopGradientConv2d(nn.Module):
    """The first convolution of G heads that each see all C channels, their own C/G with gradient (Algorithm 2).

    Args:
        channels: C.
        outputs: channels that each head makes.
        stride: stride.
        groups: G; C must be a multiple of it.
        pool_others: side of the squares that the other groups' channels are averaged over (Sec. 3.2.3) [pixels]. On
            several ranks only the averages travel.
        kernel: side of the kernel, 3 or 1.

    Shapes: input [B, C, H, W], output [B, G * outputs, H', W'], weight [G * outputs, C, k, k]. On a rank that has
    n of the G groups the input is their channels, and the output and weight are their rows.
    """

    def __init__(
        self, channels: int, outputs: int, stride: int, groups: int, pool_others: int = 1, kernel: int = 3
    ) -> None:
        super().__init__()
        self.stride, self.groups, self.pool_others = stride, groups, pool_others
        self.weight = nn.Parameter(torch.empty(groups * outputs, channels, kernel, kernel))
        self.pool = nn.AvgPool2d(pool_others, ceil_mode=True) if pool_others > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the values are those of a dense convolution."""
        x, weight = as_autocast(x), as_autocast(self.weight)
        others = peers.current()
        if self.pool is not None:
            return self._pooled(x, weight, self.pool)
        seen = others.gather_groups(x.detach(), 1)
        out = _StopGradientConv.apply(x, seen, weight, self.stride, self.groups, others.index * self.groups)
        assert isinstance(out, Tensor)
        return out

    def _pooled(self, x: Tensor, weight: Tensor, pool: nn.AvgPool2d) -> Tensor:
        """All groups pooled, and what each group's own channels have more than that: one dense, one grouped pass."""
        others, own, pad = peers.current(), x.shape[1], weight.shape[-1] // 2
        pooled = others.gather_groups(pool(x.detach()), 1)
        coarse = enlarged(pooled, self.pool_others, x.shape[2:])
        more = x - coarse[:, others.index * own : (others.index + 1) * own]
        columns = own_channels(weight, self.groups, own // self.groups, others.index * self.groups)
        of_all = F.conv2d(coarse, weight, stride=self.stride, padding=pad)
        return of_all + F.conv2d(more, columns, stride=self.stride, padding=pad, groups=self.groups)


def enlarged(pooled_BCHW: Tensor, factor: int, sides: Sequence[int]) -> Tensor:
    """Every value over the square of ``factor`` pixels a side that it is the mean of; squares end at the map's."""
    factor = min(factor, max(sides))
    return F.interpolate(pooled_BCHW, scale_factor=factor)[..., : sides[0], : sides[1]]


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
