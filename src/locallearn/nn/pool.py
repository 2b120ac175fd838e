"""Global average pooling whose gradient keeps the memory format of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Mean(torch.autograd.Function):
    """The mean over positions.

    Autograd's own backward pass hands on an expanded gradient without a memory format of its own; the ReLU before
    the pooling then walks two layouts at once, which takes several times as long as everything else in a head.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> Tensor:
        ctx.shape = x_BCHW.shape
        last = x_BCHW.is_contiguous(memory_format=torch.channels_last)
        ctx.format = torch.channels_last if last else torch.contiguous_format
        return x_BCHW.mean((2, 3))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _, _, height, width = ctx.shape
        each_BC = grads[0] / (height * width)
        return each_BC[:, :, None, None].expand(ctx.shape).contiguous(memory_format=ctx.format)


class GlobalAveragePool(nn.Module):
    """Mean over all positions, [B, C, H, W] -> [B, C]."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pool."""
        if torch.is_grad_enabled() and x_BCHW.requires_grad:
            out = _Mean.apply(x_BCHW)
            assert isinstance(out, Tensor)
            return out
        return x_BCHW.mean((2, 3))
