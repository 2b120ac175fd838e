"""Batch norm over the whole batch, where each replica has a part of it.

Own code, for torch's SyncBatchNorm needs CUDA; and statistics of a part of the batch would train another network
than one process does.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from locallearn.first_order import first_order
from locallearn.nn import peers
from locallearn.nn.heads import GroupBatchNorm
from locallearn.nn.precision import precise

Module = TypeVar("Module", bound=nn.Module)


class _Normalise(torch.autograd.Function):
    """(x - mean) / std * weight + bias over the images of all replicas, of x [B, C, P]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor, bias: Tensor, n: float) -> Tensor:
        ctx.peers, ctx.n = peers.current(), n
        ctx.save_for_backward(x, mean, inv_std, weight)
        scale = inv_std * weight
        return (precise(x) * _c(scale) + _c(bias - mean * scale)).to(x.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inv_std, weight = ctx.saved_tensors
        grad = precise(grads[0])
        unit = (precise(x) - _c(mean)) * _c(inv_std)
        own = torch.stack([_sum(grad), _sum(grad * unit)])
        sums = ctx.peers.batch_sums(own.clone()) / ctx.n
        grad_x = (grad - _c(sums[0]) - unit * _c(sums[1])) * _c(inv_std * weight)
        return grad_x.to(x.dtype), None, None, own[1], own[0], None


def _c(value_C: Tensor) -> Tensor:
    return value_C[None, :, None]


def _sum(x_BCP: Tensor) -> Tensor:
    return x_BCP.sum((0, 2))


class ReplicaBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of [B, C, ...] over the batch of all replicas; in eval mode, and with one replica, as any other.

    The variance is the mean square distance from the batch's mean, which takes two exchanges and no cancellation.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        if not self.training or peers.current().replicas == 1:
            return super().forward(input)
        x_BCP = input.unflatten(1, (-1, 1)).flatten(2) if input.dim() == 2 else input.flatten(2)
        return self._normalise(x_BCP).view_as(input)

    def _normalise(self, x_BCP: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        exchange = peers.current().batch_sums
        with torch.no_grad():
            x = precise(x_BCP)
            count = x.new_full((1,), x.shape[0] * x.shape[2])
            *sums, n = exchange(torch.cat([_sum(x), count])).split([x.shape[1], 1])
            mean = sums[0] / n
            var = exchange(_sum((x - _c(mean)).square())) / n
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        out = _Normalise.apply(x_BCP, mean, (var + self.eps).rsqrt(), self.weight, self.bias, n)
        assert isinstance(out, Tensor)
        return out

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape."""


class ReplicaGroupBatchNorm(ReplicaBatchNorm):
    """``locallearn.nn.heads.GroupBatchNorm`` over the batch of all replicas, [G, B, F] -> [G, B, F]."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every feature of every group."""
        x_BGF = input.transpose(0, 1)
        return super().forward(x_BGF.flatten(1)).view_as(x_BGF).transpose(0, 1)


def replicate(module: Module) -> Module:
    """Replace the batch norms of a module by those that ask the other replicas; parameters and buffers are kept."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                kind = ReplicaGroupBatchNorm if isinstance(layer, GroupBatchNorm) else ReplicaBatchNorm
                new = kind(layer.num_features, layer.eps, layer.momentum)
                new._parameters, new._buffers = layer._parameters, layer._buffers
                setattr(parent, name, new)
    return module
