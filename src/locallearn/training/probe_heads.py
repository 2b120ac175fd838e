"""The classifiers that probe a network, trained together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from locallearn.config import ProbeConfig
from locallearn.nn.init import initialise
from locallearn.training.depth_features import DepthPlace


def probe_head(inputs: int, classes: int, config: ProbeConfig) -> nn.Sequential:
    """One probe: features [B, inputs] to scores [B, classes]."""
    layers: list[nn.Module] = [nn.BatchNorm1d(inputs, affine=False)] if config.standardise else []
    if config.head == "mlp":
        layers += [nn.Linear(inputs, config.hidden), nn.ReLU(), nn.Linear(config.hidden, classes)]
    else:
        layers.append(nn.Linear(inputs, classes))
    return nn.Sequential(*layers)


class Probes(nn.Module):
    """One probe a place. They share no parameters: one backward call of the summed losses trains each on its own.

    Initial weights are drawn for each place from a generator of its own, so a probe does not depend on the others.

    Args:
        where: the places.
        sizes: features of each.
        classes: number of classes.
        config: settings.
    """

    def __init__(self, where: Sequence[DepthPlace], sizes: Sequence[int], classes: int, config: ProbeConfig) -> None:
        super().__init__()
        self.heads = nn.ModuleList(probe_head(size, classes, config) for size in sizes)
        for place, head in zip(where, self.heads, strict=True):
            initialise(head, 1, config.seed, "probe", place.depth)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Scores [P, B, classes] of features [B, D] of every place."""
        return torch.stack([head(x_BD) for head, x_BD in zip(self.heads, features, strict=True)])
