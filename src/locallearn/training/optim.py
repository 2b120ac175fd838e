"""The optimizer of a module, and the learning rate of its steps."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from locallearn import plugins
from locallearn.config import OptimizerConfig, RunConfig
from locallearn.errors import ConfigError
from locallearn.training.optimizers import OptimizerInput, optimizers
from locallearn.training.schedules import Rates, ScheduleInput, schedules
from locallearn.training.torch_schedules import torch_rates


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], groups: int = 1
) -> torch.optim.Optimizer:
    """The optimizer of one module. An update of a group's rows depends on them alone, so it is each node's own.

    Args:
        config: settings.
        parameters: of the module, each stacked by group on dimension 0; or torch's parameter groups of them.
        groups: G.

    Raises:
        ConfigError: the optimizer's class refuses its arguments.
        UsageError: only a file names its class, or it makes something else.
    """
    given = OptimizerInput(list(parameters), config, groups)
    made = _of_class(given) if "." in config.name else optimizers.build(config.name, given)
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError("optimizer.name", config.name, f"an optimizer of torch's kind, not {type(made).__name__}")
    return made


def _of_class(given: OptimizerInput) -> torch.optim.Optimizer:
    """An optimizer by import path; it gets the rate, and the weight decay where it has one."""
    config = given.config
    kind = plugins.imported(config.name, "optimizer.name")
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError("optimizer.name", config.name, "a class of optimizers of torch's kind")
    arguments: dict[str, Any] = {"lr": config.learning_rate}
    if "weight_decay" in inspect.signature(kind).parameters:
        arguments["weight_decay"] = config.weight_decay
    if isinstance(config.options, dict):
        arguments |= config.options
    try:
        return kind(given.parameters, **arguments)  # pyright: ignore[reportCallIssue]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError("optimizer.options", arguments, f"what {config.name} takes ({error})") from None


class RunSchedule(LRScheduler):
    """A run's schedule as one of torch's: step it after every training step.

    The rate of step ``last_epoch`` (torch's name for the number of steps so far) is ``learning_rate``, for each
    of the optimizer's groups from its own initial rate. The state is that number, and what torch keeps beside it.

    Args:
        optimizer: its groups' rates are set.
        config: of the run.
        steps_per_epoch: steps in an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: RunConfig, steps_per_epoch: int) -> None:
        initial = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self._rates = [rates(config, steps_per_epoch, float(rate)) for rate in initial]
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of the present step, for each of the optimizer's groups."""
        return [rate(self.last_epoch) for rate in self._rates]

    def state_dict(self) -> dict[str, Any]:
        """What torch keeps, without the functions."""
        return {key: value for key, value in super().state_dict().items() if key != "_rates"}


def build_schedule(config: RunConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> RunSchedule:
    """The schedule of one module's optimizer; call its ``step()`` after every training step, whatever its unit is."""
    return RunSchedule(optimizer, config, steps_per_epoch)


def rates(config: RunConfig, steps_per_epoch: int, initial: float | None = None) -> Rates:
    r"""The learning rate as a function of the step, counted from 0.

    With ``schedule.unit = "epoch"`` the rate of epoch e = 1..E is, for the cosine of Sec. 3.3.2,
    :math:`r(e) = \frac{r_0}{2} (1 + \cos(\pi e / E))`, and in the first W epochs, with any schedule,
    :math:`r(e) (e - 1) / W + r_w (W + 1 - e) / W`. With ``"step"`` the same curve is followed at every step.

    Args:
        config: of the run; its schedule is followed.
        steps_per_epoch: steps in an epoch.
        initial: :math:`r_0`; by default the optimizer's ``learning_rate``.

    Raises:
        ConfigError: torch has no such schedule, or it refuses its arguments.
    """
    schedule = config.schedule
    given = ScheduleInput(config, steps_per_epoch, config.optimizer.learning_rate if initial is None else initial)
    by_torch = schedule.name[:1].isupper()
    decayed = torch_rates(given) if by_torch else schedules.build(schedule.name, given)
    warmup = min(schedule.warmup_epochs, config.train.epochs)

    def rate(step: int) -> float:
        passed, value = given.passed(step), decayed(step)
        if passed < warmup:
            share = passed / warmup
            value = value * share + schedule.warmup_rate * (1 - share)
        return value

    return rate


def learning_rate(config: RunConfig, step: int, steps_per_epoch: int, initial: float | None = None) -> float:
    """Learning rate of one step; ``rates`` says how, and is the faster way to that of many."""
    return rates(config, steps_per_epoch, initial)(step)
