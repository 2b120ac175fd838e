"""Batch norm of few channels, computed as if of more.

In channels-last memory the channels of neighbouring pixels lie side by side, so that [B, C, H, W] can be read as
[B, n C, H, W / n]. torch's kernels fill their vectors with channels: with the 8 channels that a process has of a
ResNet's first stage when two share it, they take as long as with 16, and three times as long as read this way.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.first_order import first_order

Module = TypeVar("Module", bound=nn.Module)

LANES = 64
"""How many channels to read as."""

FEW = 32
"""Fewer channels than this are worth it."""


def together(x: Tensor) -> int:
    """How many pixels to read as one; 1 where it is not worth it or not possible."""
    if x.dim() != 4 or x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return 1
    channels, width = x.shape[1], x.shape[3]
    return next((n for n in (8, 4, 2) if channels < FEW and n * channels <= LANES and width % n == 0), 1)


def _wide(x: Tensor, n: int) -> Tensor:
    """[B, C, H, W] in channels-last memory as [B, n C, H, W / n], a view."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(batch, height, width // n, n * channels).permute(0, 3, 1, 2)


def _narrow(x: Tensor, like: Tensor) -> Tensor:
    """The way back: a tensor of its own (no view, which layers may not change in place) on the memory of ``x``."""
    return x.new_empty(0).set_(x.untyped_storage(), 0, like.shape, like.stride())  # type: ignore[call-overload]


def _scaled(x: Tensor, values_C: list[Tensor], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, where values are weight, bias, mean and var."""
    weight, bias, mean, var = values_C
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def _repeated(n: int, *values_C: Tensor) -> list[Tensor]:
    return [value.repeat(n) for value in values_C]


class _Normalise(torch.autograd.Function):
    """Batch norm by the batch's statistics [C], which the caller gives, of x [B, C, H, W] read n pixels at a time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, n: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.n = eps, n
        return _narrow(_scaled(_wide(x, n), _repeated(n, weight, bias, mean, var), eps), x)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        n, eps = ctx.n, ctx.eps
        x, like = _wide(x, n), x
        grad = _wide(grads[0].contiguous(memory_format=torch.channels_last), n)
        stats = _repeated(n, mean, var)
        # what flows through the scale alone, and the sums over the batch of grad * unit and of grad
        scaled, *sums = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight.repeat(n), *stats, None, None, False, eps, [True, True, True]
        )
        grad_weight, grad_bias = (each.view(n, -1).sum(0) for each in sums)
        share = weight * (var + eps).rsqrt() / (x.numel() // len(weight))
        # and what flows through the statistics: - (grad_bias + unit * grad_weight) * share
        through = _scaled(x, [*_repeated(n, -share * grad_weight, -share * grad_bias), *stats], eps)
        grad_x = scaled.add_(through)
        return _narrow(grad_x, like), grad_weight, grad_bias, None, None, None, None


class NarrowBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of few channels. Values are those of torch's within rounding: sums are taken in another order."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        n = together(input)
        if n == 1 or not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            scratch = self.running_mean.new_zeros(2, n * len(self.running_mean))  # without it statistics are bf16
            found = torch.batch_norm_update_stats(_wide(input, n), scratch[0], scratch[1], 0.0)
            means, variances = (each.view(n, -1) for each in found)
            mean = means.mean(0)
            var = variances.mean(0) + (means - mean).square_().mean(0)
            count = input.numel() // len(mean)
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        out = _Normalise.apply(input, self.weight, self.bias, mean, var, self.eps, n)
        assert isinstance(out, Tensor)
        return out


def narrowed(module: Module) -> Module:
    """Replace the batch norms of images of a module; parameters and buffers are kept."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.BatchNorm2d:
                new = NarrowBatchNorm2d(layer.num_features, layer.eps, layer.momentum)
                new._parameters, new._buffers = layer._parameters, layer._buffers
                setattr(parent, name, new)
    return module
