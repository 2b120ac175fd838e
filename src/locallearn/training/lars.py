"""LARS for nodes: norms of each group's rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    r"""Layerwise adaptive rate scaling (You et al., 2017, arXiv 1708.03888) of parameters stacked by group.

    The rows w of one group of a weight, with gradient g, weight decay :math:`\beta`, momentum m, rate r and trust
    :math:`\eta`: :math:`v \leftarrow m v + r \lambda (g + \beta w)`, :math:`w \leftarrow w - v`, where
    :math:`\lambda = \eta \|w\| / (\|g\| + \beta \|w\| + \epsilon)`, and 1 where a norm is 0. So each node is
    updated as if it were alone. Vectors (biases, weights of norms) have :math:`\lambda = 1` and no decay, unless
    ``vectors`` is set.

    Args:
        params: parameters whose first dimension is a multiple of ``groups``, or torch's parameter groups.
        lr: r.
        momentum: m.
        weight_decay: beta.
        groups: G; group g of G owns rows [g n/G, (g+1) n/G).
        trust: eta.
        eps: epsilon.
        vectors: treat vectors as other weights.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        groups: int = 1,
        trust: float = 1e-3,
        eps: float = 1e-8,
        vectors: bool = False,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps}
        super().__init__(params, {**settings, "vectors": vectors})
        self.groups = groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; give back what ``closure`` gives, where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for settings in self.param_groups:
            for parameter in settings["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, settings)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, settings: dict[str, Any]) -> None:
        if parameter.dim() > 1 or settings["vectors"]:
            decay = settings["weight_decay"]
            scale_G = self._scales(parameter, gradient, decay, settings["trust"], settings["eps"])
            rows = scale_G.repeat_interleave(parameter.shape[0] // self.groups)
            gradient = (gradient + decay * parameter) * rows.view(-1, *[1] * (parameter.dim() - 1))
        change = settings["lr"] * gradient
        if settings["momentum"]:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            change = state["momentum_buffer"].mul_(settings["momentum"]).add_(change)
        parameter.sub_(change)

    def _scales(self, parameter: Tensor, gradient: Tensor, decay: float, trust: float, eps: float) -> Tensor:
        """The lambda of every group's rows, [G]."""
        weight_G, gradient_G = (_row_norms(tensor, self.groups) for tensor in (parameter, gradient))
        scale_G = trust * weight_G / (gradient_G + decay * weight_G + eps)
        return torch.where((weight_G > 0) & (gradient_G > 0), scale_G, torch.ones_like(scale_G))


def _row_norms(tensor: Tensor, groups: int) -> Tensor:
    """Norms of the groups' rows, [G]."""
    return tensor.reshape(groups, -1).norm(dim=1)
