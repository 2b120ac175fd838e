"""Batch norm over the whole batch, where each replica has a part of it.

Own code, for torch's SyncBatchNorm needs CUDA; and statistics of a part of the batch would train another network
than one process does. It is ``torch.nn.functional.batch_norm`` that is answered, whatever layer calls it, so that
layers derived from torch's batch norms, which add an activation or cast their input, stay as they were written.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from locallearn.first_order import first_order
from locallearn.nn import peers
from locallearn.nn.precision import precise

BatchNorm = Callable[..., Tensor]
"""A function of the arguments of ``torch.nn.functional.batch_norm``, in its order."""

torch_batch_norm: BatchNorm = F.batch_norm
"""torch's own."""

_LOCK = threading.Lock()
_answer: ContextVar[BatchNorm | None] = ContextVar("batch norm", default=None)
_users = 0


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


@contextlib.contextmanager
def batch_norm_is(answer: BatchNorm) -> Iterator[None]:
    """While it lasts, ``torch.nn.functional.batch_norm`` in training is another function for what this thread calls.

    A ``TorchFunctionMode`` would not do: what checkpoints compute again in a backward pass is outside of it.
    """
    global _users
    with _LOCK:
        _users += 1
        F.batch_norm = _dispatch
    token = _answer.set(answer)
    try:
        yield
    finally:
        _answer.reset(token)
        with _LOCK:
            _users -= 1
            if not _users:
                F.batch_norm = torch_batch_norm


def _dispatch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    answer = (_answer.get() if training else None) or torch_batch_norm
    return answer(input, running_mean, running_var, weight, bias, training, momentum, eps)


def positions(x: Tensor) -> Tensor:
    """[B, C] or [B, C, ...] as [B, C, P], a view where it can be."""
    return x[:, :, None] if x.dim() == 2 else x.flatten(2)


def _whole_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` in training.

    The variance is the mean square distance from the batch's mean, which takes two exchanges and no cancellation.
    """
    x_BCP, exchange = positions(input), peers.current().batch_sums
    with torch.no_grad():
        x = precise(x_BCP)
        count = x.new_full((1,), x.shape[0] * x.shape[2])
        *sums, n = exchange(torch.cat([_sum(x), count])).split([x.shape[1], 1])
        mean = sums[0] / n
        var = exchange(_sum((x - _c(mean)).square())) / n
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * n / (n - 1)).to(running_var.dtype), momentum)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    out = _Normalise.apply(x_BCP, mean, (var + eps).rsqrt(), weight, bias, n)
    assert isinstance(out, Tensor)
    return out.view_as(input)


def whole_batch_norms() -> contextlib.AbstractContextManager[None]:
    """While it lasts, batch norms are over the batch of all replicas, where the current peers are some."""
    return batch_norm_is(_whole_batch_norm) if peers.replicated() else contextlib.nullcontext()
