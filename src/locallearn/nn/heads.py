"""Auxiliary heads of all groups of a module, as one batched network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from locallearn.arguments import checked_fields
from locallearn.config.own_parts import LAYERED, check_part, is_layered
from locallearn.errors import ConfigError
from locallearn.nn.backbones import Place
from locallearn.nn.group_conv import conv
from locallearn.nn.groups import GroupLinear, StopGradientConv2d, split_vectors, stop_gradient_vectors
from locallearn.nn.norm_relu import norm_relu, norm_relu_mean
from locallearn.nn.pool import GlobalAveragePool
from locallearn.registry import Registry


@checked_fields
@dataclass(frozen=True)
class HeadInput:
    """What the heads of one module are built for.

    Attributes:
        shape: features of one image over all groups, (C, H, W) or (C,).
        outputs: size of each head's output.
        groups: G.
        hidden: hidden units, as the settings and the model's width factor have them.
        stop_gradient: whether heads see the other groups' features, detached.
        pool_others: side of the squares that those are averaged over first [pixels].
        place: where the module ends in a backbone of the package's own; None in a user's own model.
        options: settings of the head's own: an instance of the dataclass that it was registered with; None without.
    """

    shape: tuple[int, ...]
    outputs: int
    groups: int = 1
    hidden: int = 128
    stop_gradient: bool = False
    pool_others: int = 1
    place: Place | None = None
    options: Any = None


heads: Registry[Callable[[HeadInput], nn.Module]] = Registry("objective.head", "given: HeadInput", nn.Module)
"""Builders of heads by name, which map features [B, C, H, W] or [B, C] to [G, B, outputs]."""


def parse_head(name: str) -> tuple[int, int]:
    """``"1c2f"`` -> (1 convolution, 2 linear layers).

    Raises:
        ConfigError: the name is not of that form, or has no linear layer.
    """
    if not is_layered(name):
        check_part("objective.head", name)
        raise ConfigError("objective.head", name, LAYERED)
    return int(name[0]), int(name[2])


def build_head(
    name: str,
    shape: tuple[int, ...],
    outputs: int,
    *,
    groups: int = 1,
    hidden: int = 128,
    stop_gradient: bool = False,
    pool_others: int = 1,
    place: Place | None = None,
    options: Any = None,
) -> nn.Module:
    """Build the heads of one module: a registered one, or ``<n>c<m>f``.

    Args:
        name: of the head.
        shape: features of one image over all groups, (C, H, W) or (C,).
        outputs: size of each head's output.
        groups: G.
        hidden: hidden units of the linear layers of ``<n>c<m>f``.
        stop_gradient: whether heads see the other groups' features.
        pool_others: side of the squares that those are averaged over first [pixels].
        place: where the module ends in its backbone.
        options: settings of a registered head's own, as an instance of their dataclass or by name.

    Raises:
        ConfigError: no such head, or settings that are not its own.
    """
    own = heads.options(name, options, "objective.head_options")
    if name in heads:
        return heads.build(name, HeadInput(shape, outputs, groups, hidden, stop_gradient, pool_others, place, own))
    return AuxiliaryHead(
        name,
        shape[0],
        len(shape) == 3,
        outputs,
        groups=groups,
        hidden=hidden,
        stop_gradient=stop_gradient,
        pool_others=pool_others,
    )


def build_inner(name: str, given: HeadInput, shape: tuple[int, ...]) -> nn.Module:
    """Build the head ``name`` of a head that has another inside, for the features that it sees.

    Args:
        name: of the inner head, which has its default settings.
        given: what the outer head is built for.
        shape: features of one image over all groups as the inner head sees them.
    """
    return build_head(
        name,
        shape,
        given.outputs,
        groups=given.groups,
        hidden=given.hidden,
        stop_gradient=given.stop_gradient,
        pool_others=given.pool_others,
        place=given.place,
    )


def seen_by_groups(x: Tensor, groups: int, stop_gradient: bool) -> Tensor:
    """What each group's network sees of features [B, C, ...], flattened, [G, B, ...].

    All C channels, its own with gradient and the others without, or its own C/G channels only.
    """
    x_BC = x.flatten(1)
    return stop_gradient_vectors(x_BC, groups) if stop_gradient else split_vectors(x_BC, groups)


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
        pool_others: side of the squares that those are averaged over first, where there are convolutions [pixels].

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
        pool_others: int = 1,
    ) -> None:
        super().__init__()
        n_convs, n_linears = parse_head(name)
        self.groups = groups
        self.pool_others = pool_others
        self.stop_gradient = stop_gradient and groups > 1
        seen = channels if self.stop_gradient else channels // groups
        self.convs = nn.Sequential()
        if maps and n_convs:
            self.convs = self._convolutions(n_convs, channels, 2 * seen)
            seen = 2 * seen
        self.pool = GlobalAveragePool() if maps else nn.Identity()
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
                layers.append(StopGradientConv2d(channels, width, stride, self.groups, self.pool_others))
            else:
                inputs = channels if i == 0 else width * self.groups
                layers.append(conv(inputs, width * self.groups, 3, stride, self.groups, dense=False))
            layers.append(nn.BatchNorm2d(width * self.groups))
            layers.append(nn.ReLU(inplace=True))
        return layers

    def _pooled(self, x: Tensor) -> Tensor:
        """The convolutions with all that follows them, and the mean over positions."""
        layers = list(self.convs)
        for i in range(0, len(layers) - 3, 3):
            x = norm_relu(layers[i + 1], layers[i + 2], layers[i](x))
        convolution, norm, relu = layers[-3:]
        return norm_relu_mean(norm, relu, self.pool, convolution(x))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        x = self._pooled(x) if len(self.convs) else self.pool(x)
        return self.linears(seen_by_groups(x, self.groups, self.stop_gradient and not len(self.convs)))


class GroupBatchNorm(nn.BatchNorm1d):
    """Batch norm of G groups of vectors, [G, B, F] -> [G, B, F]; weight, bias and statistics are [G * F]."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every feature of every group over the batch."""
        x_BGF = input.transpose(0, 1)
        return super().forward(x_BGF.flatten(1)).view_as(x_BGF).transpose(0, 1)


class MlpHead(nn.Module):
    """``mlp-sr``: the multi-layer perceptron head with spatial reduction (Belilovsky et al., 2020).

    On C channels: average pooling to a quarter of each side (but not below 2), three 1x1 convolutions C -> C, average
    pooling to 2x2, three linear layers of 4C units, and a linear layer. Batch norm and ReLU follow all but the last.
    Features that are vectors go through the linear layers alone, which then have C units. What the head of a group
    sees is as for ``AuxiliaryHead``; with ``stop_gradient`` the channels are exchanged pooled.

    Args:
        shape: features of one image over all groups, (C, H, W) or (C,).
        outputs: size of each head's output (classes).
        groups: G.
        stop_gradient: whether heads see the other groups' features.

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, *, groups: int = 1, stop_gradient: bool = False) -> None:
        super().__init__()
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        seen = shape[0] if self.stop_gradient else shape[0] // groups
        self.reduce, self.convs, self.pool = nn.Identity(), nn.Sequential(), nn.Identity()
        units = seen
        if len(shape) == 3:
            self.sides = tuple(min(side, max(2, math.ceil(side / 4))) for side in shape[1:])
            last = tuple(min(side, 2) for side in self.sides)
            self.reduce, self.pool = nn.AdaptiveAvgPool2d(self.sides), nn.AdaptiveAvgPool2d(last)
            self.convs = _pointwise(3, seen * groups, groups)
            units = seen * last[0] * last[1]
        self.linears = nn.Sequential()
        for _ in range(3):
            self.linears.extend(
                [GroupLinear(groups, units, units), GroupBatchNorm(groups * units), nn.ReLU(inplace=True)]
            )
        self.linears.append(GroupLinear(groups, units, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        x_GBC = seen_by_groups(self.reduce(x), self.groups, self.stop_gradient)
        if len(self.convs):
            maps = x_GBC.transpose(0, 1).reshape(len(x), -1, *self.sides)
            x_GBC = split_vectors(self.pool(self.convs(maps)).flatten(1), self.groups)
        return self.linears(x_GBC)


@heads.register("mlp-sr")
def mlp_head(given: HeadInput) -> MlpHead:
    """The multi-layer perceptron head with spatial reduction."""
    return MlpHead(given.shape, given.outputs, groups=given.groups, stop_gradient=given.stop_gradient)


def _pointwise(n: int, channels: int, groups: int) -> nn.Sequential:
    """``n`` times 1x1 convolution, batch norm and ReLU."""
    layers = nn.Sequential()
    for _ in range(n):
        layers.extend(
            [conv(channels, channels, 1, 1, groups, dense=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        )
    return layers
