"""Global average pooling that costs one pass forward and none backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Mean(torch.autograd.Function):
    """The mean over positions.

    Autograd's own backward pass hands on an expanded gradient without a memory format of its own; the ReLU before
    the pooling then walks two layouts at once, which takes several times as long as everything else in a head.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> Tensor:
        ctx.shape = x_BCHW.shape
        return _mean(x_BCHW)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        _, _, height, width = ctx.shape
        each_BC = grads[0] / (height * width)
        return each_BC[:, :, None, None].expand(ctx.shape)  # one number a map: what comes next reads and writes less


def _mean(x_BCHW: Tensor) -> Tensor:
    if x_BCHW.device.type == "cpu" and x_BCHW.dtype.itemsize < 4:  # mean would make an fp32 copy of its input
        return F.avg_pool2d(x_BCHW, x_BCHW.shape[2:]).flatten(1)
    return x_BCHW.mean((2, 3))


class GlobalAveragePool(nn.Module):
    """Mean over all positions, [B, C, H, W] -> [B, C]."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pool."""
        if torch.is_grad_enabled() and x_BCHW.requires_grad:
            out = _Mean.apply(x_BCHW)
            assert isinstance(out, Tensor)
            return out
        return _mean(x_BCHW)
