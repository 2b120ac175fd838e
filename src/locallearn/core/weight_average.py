"""A moving average of a stage's weights."""

from __future__ import annotations

import torch

from locallearn.core.module import Stage


class WeightAverage:
    """An exponential moving average of a stage's parameters.

    Args:
        stage: whose.
        decay: share of the average that an update keeps, in [0, 1).

    Attributes:
        values: the average by parameter.
    """

    def __init__(self, stage: Stage, decay: float) -> None:
        self.stage, self.decay = stage, decay
        self.values = {name: p.detach().clone() for name, p in stage.own_parameters().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights."""
        for name, parameter in self.stage.own_parameters().items():
            self.values[name].lerp_(parameter.to(self.values[name].dtype), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights; a second call puts them back."""
        for name, parameter in self.stage.own_parameters().items():
            present = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name] = present
