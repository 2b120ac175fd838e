"""Grouped layers: G groups stacked by rows, so that all groups compute as one batched operation.

Group g of G owns rows [g n/G, (g+1) n/G) of every parameter and buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.nn import peers

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
            columns = own_channels(weight, ctx.groups, own.shape[1] // ctx.groups, ctx.first)
            groups = ctx.groups
            together = packed_together(own.shape[1], weight.shape[0], groups, GRADIENT_LANES)
            if together > 1:
                columns = pack(columns, groups, together)
            needed = (True, False, False)
            grad_own = _conv_backward(grads[0], own, columns, ctx.stride, groups // together, needed)[0]
        if ctx.needs_input_grad[2]:
            grad_weight = _conv_backward(grads[0], seen, weight, ctx.stride, 1, (False, True, False))[1]
        return grad_own, None, grad_weight, None, None, None


def own_channels(weight: Tensor, groups: int, channels: int, first: int) -> Tensor:
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
        pool_others: side of the squares that the other groups' channels are averaged over (Sec. 3.2.3) [pixels]. On
            several ranks only the averages travel.

    Shapes: input [B, C, H, W], output [B, G * outputs, H', W'], weight [G * outputs, C, 3, 3]. On a rank that has
    n of the G groups the input is their channels, and the output and weight are their rows.
    """

    def __init__(self, channels: int, outputs: int, stride: int, groups: int, pool_others: int = 1) -> None:
        super().__init__()
        self.stride, self.groups, self.pool_others = stride, groups, pool_others
        self.weight = nn.Parameter(torch.empty(groups * outputs, channels, 3, 3))
        self.pool = nn.AvgPool2d(pool_others, ceil_mode=True) if pool_others > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the values are those of a dense convolution."""
        x, weight = _autocast(x, self.weight)
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
