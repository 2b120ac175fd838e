"""Cross entropy of a linear layer's scores that computes a part of them at a time and keeps none.

Scores of N tokens over a vocabulary of V are the largest tensor of a language model by far: at 512 tokens and 50,257
entries they take 98 MiB in fp32, and plain cross entropy keeps them for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from locallearn.first_order import first_order
from locallearn.losses.scores import IGNORED


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, labels_N: Tensor, chunk: int
) -> Tensor:
    """Mean cross entropy of the scores x W^T + b, without keeping them; a scalar, in at least fp32.

    Its value and gradients are those of ``F.cross_entropy(F.linear(x, W, b).float(), labels)``. Where the layer is
    not trained, the gradient of the tokens is computed with the loss, some tokens at a time, and is all that is kept.
    Where it is, the scores are computed once more in the backward pass, of a part of the vocabulary at a time.

    Args:
        x_NC: what the layer is given.
        weight_VC: its weight; detached where it is only read.
        bias_V: its bias, or None.
        labels_N: classes, or -100 where a token does not count.
        chunk: how many scores are computed at a time.
    """
    bias_V = torch.zeros((), dtype=weight_VC.dtype, device=weight_VC.device) if bias_V is None else bias_V
    trained = weight_VC.requires_grad or bias_V.requires_grad
    return (_Trained if trained else _Read).apply(x_NC, weight_VC, bias_V, labels_N, chunk)  # type: ignore[no-any-return]


class _Read(torch.autograd.Function):
    """The layer is read: sum_v p_v W_v - W_label is the gradient of a token, known as soon as its scores are."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight: Tensor, bias: Tensor, labels_N: Tensor, chunk: int) -> Tensor:
        wanted = x_NC.requires_grad
        x, weight, bias, exact = _as_computed(x_NC, weight, bias)
        counted_N, labels_N = labels_N != IGNORED, labels_N.clamp(min=0)
        losses_N = torch.empty(len(x), dtype=exact, device=x.device)
        gradient_NC = torch.empty(x.shape if wanted else (0,), dtype=exact, device=x.device)
        with _no_autocast(x):
            for rows in _parts(len(x), max(1, chunk // len(weight))):
                scores = _scores(x[rows], weight, bias).to(exact)
                largest = scores.amax(1, keepdim=True)
                label = scores.gather(1, labels_N[rows, None])
                mass = scores.sub_(largest).exp_()
                total = mass.sum(1, keepdim=True)
                losses_N[rows] = (total.log() + largest - label)[:, 0]
                if wanted:
                    mean = (mass.to(weight.dtype) @ weight).to(exact) / total
                    gradient_NC[rows] = mean - weight[labels_N[rows]].to(exact)
        count = counted_N.sum()
        if wanted:
            ctx.save_for_backward(gradient_NC.mul_((counted_N.to(exact) / count)[:, None]).to(x_NC.dtype))
        return losses_N.where(counted_N, 0).sum() / count

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NC,) = ctx.saved_tensors
        return (gradient_NC * grads[0]).to(gradient_NC.dtype), None, None, None, None


class _Trained(torch.autograd.Function):
    """The layer is trained: of the vocabulary a part at a time, so that each of its gradients is written once."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight: Tensor, bias: Tensor, labels_N: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(x_NC, weight, bias, labels_N)
        ctx.part = max(1, chunk // len(x_NC))
        x, weight, bias, exact = _as_computed(x_NC, weight, bias)
        ctx.computed = x.dtype
        largest_N = torch.full((len(x),), -torch.inf, dtype=exact, device=x.device)
        total_N, label_N = torch.zeros_like(largest_N), torch.zeros_like(largest_N)
        with _no_autocast(x):
            for columns in _parts(len(weight), ctx.part):
                scores = _scores(x, weight[columns], bias[columns] if bias.dim() else bias).to(exact)
                here_N, place_N = _in_part(labels_N, columns)
                label_N = torch.where(here_N, scores.gather(1, place_N[:, None])[:, 0], label_N)
                before_N, largest_N = largest_N, torch.maximum(largest_N, scores.amax(1))
                total_N = total_N * (before_N - largest_N).exp() + scores.sub_(largest_N[:, None]).exp_().sum(1)
        counted_N = labels_N != IGNORED
        ctx.log_total_N = total_N.log() + largest_N
        ctx.count = counted_N.sum()
        return (ctx.log_total_N - label_N).where(counted_N, 0).sum() / ctx.count

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, weight_VC, bias_V, labels_N = ctx.saved_tensors
        x, kind = x_NC.to(ctx.computed), ctx.computed
        share_N1 = ((labels_N != IGNORED) * (grads[0].to(ctx.log_total_N.dtype) / ctx.count))[:, None]
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        gradient_x = torch.zeros(x.shape, dtype=ctx.log_total_N.dtype, device=x.device) if for_x else None
        gradient_weight = torch.empty_like(weight_VC) if for_weight else None
        gradient_bias = torch.empty_like(bias_V) if for_bias else None
        with _no_autocast(x):
            for columns in _parts(len(weight_VC), ctx.part):
                part = weight_VC[columns].to(kind)
                scores = _scores(x, part, (bias_V[columns] if bias_V.dim() else bias_V).to(kind))
                scores = scores.to(share_N1.dtype).sub_(ctx.log_total_N[:, None]).exp_()
                here_N, place_N = _in_part(labels_N, columns)
                scores.scatter_add_(1, place_N[:, None], -here_N[:, None].to(scores.dtype))
                scores = scores.mul_(share_N1)
                if gradient_bias is not None:
                    gradient_bias[columns] = scores.sum(0)
                scores = scores.to(kind)
                if gradient_x is not None:
                    gradient_x += scores @ part
                if gradient_weight is not None:
                    gradient_weight[columns] = scores.T @ x
        return None if gradient_x is None else gradient_x.to(x_NC.dtype), gradient_weight, gradient_bias, None, None


def _as_computed(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
    """All three in what autocast would multiply them in, and the type of what is summed up of them."""
    device = x.device.type
    kind = x.dtype
    if device != "meta" and torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    return x.to(kind), weight.to(kind), bias.to(kind), torch.promote_types(kind, torch.float32)


def _scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias if bias.dim() else None)


def _no_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type if x.device.type != "meta" else "cpu", enabled=False)


def _parts(length: int, part: int) -> list[slice]:
    return [slice(start, min(start + part, length)) for start in range(0, length, part)]


def _in_part(labels_N: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which labels are in a part of the vocabulary, and where in it; 0 for the others."""
    here_N = (labels_N >= columns.start) & (labels_N < columns.stop)
    return here_N, torch.where(here_N, labels_N - columns.start, 0)
