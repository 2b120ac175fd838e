"""Initial weights, drawn for each group from a generator of its own.

So a group's weights depend on its place (module, group) and the run's seed alone: a process that holds one group
draws exactly the rows that one process with all groups would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from locallearn.nn.groups import GroupLinear, StopGradientConv2d
from locallearn.seeding import generator


@torch.no_grad()
def initialise(
    module: nn.Module,
    groups: int,
    seed: int,
    *keys: int | str,
    all_channels: bool = False,
    apart: Iterable[nn.Module] = (),
) -> None:
    """Draw the weights of ``module`` but for parts ``apart``; parameters are stacked by ``groups`` on dimension 0.

    Convolutions are N(0, 2 / (k k out)) with the output channels of one group, or with ``all_channels`` those of all
    groups; linear layers are uniform in +-1/sqrt(inputs), biases too; batch norm starts as weight 1, bias 0.
    """
    kept = {layer for part in apart for layer in part.modules()}
    for group in range(groups):
        draw = generator(seed, "init", *keys, group)
        for layer in (layer for layer in module.modules() if layer not in kept):
            if isinstance(layer, (nn.Conv2d, StopGradientConv2d)):
                rows = layer.weight.chunk(groups)[group]
                fan_out = (layer.weight if all_channels else rows).shape[0] * rows.shape[2] * rows.shape[3]
                rows.copy_(_normal(rows.shape, math.sqrt(2 / fan_out), draw))
            elif isinstance(layer, (GroupLinear, nn.Linear)):
                bound = 1 / math.sqrt(layer.weight.shape[1])
                for parameter in (layer.weight, layer.bias):
                    if parameter is None:
                        continue
                    rows = parameter.chunk(groups)[group]
                    rows.copy_(torch.empty(rows.shape).uniform_(-bound, bound, generator=draw))


def _normal(shape: torch.Size, std: float, draw: torch.Generator) -> torch.Tensor:
    return torch.empty(shape).normal_(0.0, std, generator=draw)
