"""Clipping of gradients by the norm of each node's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from locallearn.nn.precision import precise


def per_node(value_G: Tensor, parameter: Tensor) -> Tensor:
    """Spread one value per group over a parameter's rows, shaped to multiply it."""
    rows = value_G.repeat_interleave(parameter.shape[0] // len(value_G))
    return rows.view(-1, *[1] * (parameter.dim() - 1))


def clip_gradients(parameters: Iterable[nn.Parameter], groups: int, max_norm: float) -> Tensor | None:
    """Scale the gradients of every node whose gradient norm is above ``max_norm`` down to it.

    Args:
        parameters: of one stage, each stacked by group on dimension 0.
        groups: G, the number of nodes.
        max_norm: largest norm of the gradients of one node.

    Returns:
        The nodes' norms before that [G]; None where no parameter has a gradient.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    squares_G = sum(_squares(gradient, groups) for gradient in gradients)
    assert isinstance(squares_G, Tensor)
    norms_G = squares_G.sqrt()
    scale_G = (max_norm / (norms_G + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        by_row = gradient.dim() and not gradient.is_sparse
        gradient.mul_(per_node(scale_G, gradient) if by_row else scale_G[0])
    return norms_G


def _squares(gradient: Tensor, groups: int) -> Tensor:
    """Sum of squares of every group's rows [G], in at least fp32; a sparse gradient is of one group."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    values = precise(torch.view_as_real(values) if values.is_complex() else values).pow(2)
    return (values.flatten(1).sum(1) if values.dim() > 1 else values).view(groups, -1).sum(1)
