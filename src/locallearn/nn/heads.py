"""Auxiliary heads ``<n>c<m>f`` of all groups of a module, as one batched network."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from locallearn.errors import ConfigError
from locallearn.nn.groups import GroupLinear, StopGradientConv2d, conv, split_vectors, stop_gradient_vectors


def parse_head(name: str) -> tuple[int, int]:
    """``"1c2f"`` -> (1 convolution, 2 linear layers).

    Raises:
        ConfigError: the name is not of that form, or has no linear layer.
    """
    match = re.fullmatch(r"(\d)c([1-9])f", name)
    if match is None:
        raise ConfigError("objective.head", name, "<n>c<m>f with n convolutions and m >= 1 linear layers, like 1c2f")
    return int(match[1]), int(match[2])


class AuxiliaryHead(nn.Module):
    """The heads of the G groups of one module.

    On C channels a head has n convolutions 3x3 with batch norm and ReLU (the first has stride 2 and makes 2C
    channels), global average pooling, and m linear layers with ReLU between. With ``stop_gradient`` the head of
    group g sees all C channels, its own with gradient and the others detached (Algorithm 2); without, it sees its
    own C/G channels only (naive splitting). On vectors there is nothing to convolve or pool, and only the linear
    layers are used.

    Args:
        name: ``<n>c<m>f``.
        channels: C, channels of the module's features over all groups.
        maps: whether the features are maps [B, C, H, W] or vectors [B, C].
        outputs: size of each head's output (classes).
        groups: G.
        hidden: hidden units of the linear layers.
        stop_gradient: whether heads see the other groups' features.

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].
    """

    def __init__(
        self,
        name: str,
        channels: int,
        maps: bool,
        outputs: int,
        *,
        groups: int = 1,
        hidden: int = 128,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        n_convs, n_linears = parse_head(name)
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        seen = channels if self.stop_gradient else channels // groups
        self.convs = nn.Sequential()
        if maps and n_convs:
            self.convs = self._convolutions(n_convs, channels, 2 * seen)
            seen = 2 * seen
        self.pool = nn.AdaptiveAvgPool2d(1) if maps else nn.Identity()
        self.linears = nn.Sequential()
        for i in range(n_linears):
            last = i == n_linears - 1
            self.linears.append(GroupLinear(groups, seen, outputs if last else hidden))
            if not last:
                self.linears.append(nn.ReLU(inplace=True))
            seen = hidden

    def _convolutions(self, n: int, channels: int, width: int) -> nn.Sequential:
        layers = nn.Sequential()
        for i in range(n):
            stride = 2 if i == 0 else 1
            if i == 0 and self.stop_gradient:
                layers.append(StopGradientConv2d(channels, width, stride, self.groups))
            else:
                inputs = channels if i == 0 else width * self.groups
                layers.append(conv(inputs, width * self.groups, 3, stride, self.groups, dense=False))
            layers.append(nn.BatchNorm2d(width * self.groups))
            layers.append(nn.ReLU(inplace=True))
        return layers

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        x_BC = torch.flatten(self.pool(self.convs(x)), 1)
        if self.stop_gradient and not len(self.convs):
            x_GBC = stop_gradient_vectors(x_BC, self.groups)
        else:
            x_GBC = split_vectors(x_BC, self.groups)
        return self.linears(x_GBC)
