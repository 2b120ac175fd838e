"""An optimizer of the user's own is tried on a few numbers before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from locallearn.config import OptimizerConfig
from locallearn.errors import ConfigError
from locallearn.training.optim import build_optimizer

_OURS = ("sgd", "adam", "adamw", "lars")
_STEPS = 3


def check_optimizer(config: OptimizerConfig, groups: Sequence[int]) -> None:
    """Refuse an optimizer that cannot serve nodes that share it, or whose state a checkpoint would lose.

    The rows of G groups are updated together and one by one; the weights must be the same. Its state must be tensors
    of a parameter's shape, or single numbers in tensors, since checkpoints hold the rows of a node.

    Args:
        config: its settings; the package's own optimizers are not tried.
        groups: G of every module.

    Raises:
        ConfigError: one line says what does not fit.
    """
    if config.name in _OURS:
        return
    n = max(groups)
    weights = [torch.linspace(-1, 2, 6 * n).view(2 * n, 3), torch.linspace(1, -1, 2 * n)]
    together, optimizer = _stepped(config, weights, n)
    for parameter in optimizer.param_groups[0]["params"]:
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor) or value.shape not in (parameter.shape, torch.Size()):
                expected = f"an optimizer whose state is tensors of the weights' shape, as {key!r} is not"
                raise ConfigError("optimizer.name", config.name, expected)
    for group in range(n if n > 1 else 0):
        own = [weight[2 * group : 2 * group + 2] for weight in weights]
        alone, _ = _stepped(config, own, 1, 2 * group)
        for whole, part in zip(together, alone, strict=True):
            if not torch.allclose(whole[2 * group : 2 * group + 2], part, rtol=1e-4, atol=1e-6):
                expected = f"an optimizer that updates every number by itself where width is {n}: the update of one "
                raise ConfigError("optimizer.name", config.name, f"{expected}group depends on the others here")


def _stepped(
    config: OptimizerConfig, weights: list[Tensor], groups: int, first: int = 0
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Weights after some steps with gradients that depend on the rows' numbers, counted from ``first``."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = build_optimizer(config, parameters, groups)
    for step in range(1, _STEPS + 1):
        for parameter in parameters:
            row = torch.arange(first, first + len(parameter)).view(-1, *[1] * (parameter.dim() - 1))
            parameter.grad = torch.sin(step + row + torch.zeros_like(parameter)) * (1 + row)
        try:
            optimizer.step()
        except (TypeError, ValueError, RuntimeError) as error:
            expected = f"an optimizer whose step() asks for nothing ({error})"
            raise ConfigError("optimizer.name", config.name, expected) from None
    return [parameter.detach() for parameter in parameters], optimizer
