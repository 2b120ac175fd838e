"""Optimizers by name, each with its own settings beside it. Torch is imported when one is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from locallearn.arguments import checked_fields
from locallearn.config import OptimizerConfig
from locallearn.registry import Registry

if TYPE_CHECKING:
    from torch.optim import Optimizer

PATH = "package.module.Class"
"""How an optimizer that is not registered is named; a name with a dot is one."""


@checked_fields
@dataclass(frozen=True)
class OptimizerInput:
    """What the optimizer of one module is built for.

    Attributes:
        parameters: of the module, each stacked by group on dimension 0; or torch's parameter groups of them.
        config: its settings.
        groups: G; an update of group g's rows must depend on these rows alone.
    """

    parameters: list[Any]
    config: OptimizerConfig
    groups: int = 1

    @property
    def options(self) -> Any:
        """Settings of the optimizer's own: an instance of the dataclass that it was registered with; None without."""
        return optimizers.options(self.config.name, self.config.options, "optimizer.options")


optimizers: Registry[Callable[[OptimizerInput], Any]] = Registry("optimizer.name", "given: OptimizerInput", also=PATH)
"""Builders of optimizers by name."""


@dataclass(frozen=True)
class AdamOptions:
    """Settings of Adam and AdamW beyond rate and weight decay."""

    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Shares that the running means of gradients and of their squares keep at every step."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the mean square."""
    amsgrad: bool = False
    """Divide by the largest mean square so far (Reddi et al., 2018)."""


@dataclass(frozen=True)
class LarsOptions:
    """Settings of LARS beyond rate, momentum and weight decay."""

    trust: Annotated[float, Field(gt=0)] = 1e-3
    """How far a weight may move, as a share of its norm times the learning rate."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """Added to the norm of the gradient."""
    vectors: bool = False
    """Adapt and decay vectors too: biases and the weights of norms."""


@optimizers.register("sgd")
def sgd(given: OptimizerInput) -> Optimizer:
    """SGD with momentum; the weight decay is an L2 penalty."""
    import torch

    config = given.config
    return torch.optim.SGD(
        given.parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        foreach=True,
    )


@optimizers.register("adam", options=AdamOptions)
def adam(given: OptimizerInput) -> Optimizer:
    """Adam (Kingma and Ba, 2015); the weight decay is an L2 penalty."""
    import torch

    return torch.optim.Adam(given.parameters, **_adam(given))


@optimizers.register("adamw", options=AdamOptions)
def adamw(given: OptimizerInput) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    import torch

    return torch.optim.AdamW(given.parameters, **_adam(given))


def _adam(given: OptimizerInput) -> dict[str, Any]:
    config, own = given.config, given.options
    return {
        "lr": config.learning_rate,
        "betas": own.betas,
        "eps": own.eps,
        "amsgrad": own.amsgrad,
        "weight_decay": config.weight_decay,
        "foreach": True,
    }


@optimizers.register("lars", options=LarsOptions)
def lars(given: OptimizerInput) -> Optimizer:
    """LARS (You et al., 2017): SGD with momentum, at a rate for every weight of every node that its norm sets."""
    from locallearn.training.lars import LARS

    config, own = given.config, given.options
    return LARS(
        given.parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        groups=given.groups,
        trust=own.trust,
        eps=own.eps,
        vectors=own.vectors,
    )
