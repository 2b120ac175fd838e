"""The two auxiliary networks of predsim (Nokland and Eidnes, 2019), for all groups of a module."""

from __future__ import annotations

import math

from torch import Tensor, nn

from locallearn.nn.group_conv import conv
from locallearn.nn.groups import GroupLinear, StopGradientConv2d, split_vectors
from locallearn.nn.heads import seen_by_groups


def pooled_sides(channels: int, sides: tuple[int, int], limit: int) -> tuple[int, int]:
    """Height and width after halving them in turn, the height first, until all features are at most ``limit``."""
    (height, width), rows, columns = sides, sides[0], sides[1]
    kernel = 1
    while channels * rows * columns > limit and kernel < max(height, width):
        kernel *= 2
        rows = math.ceil(height / kernel)
        if channels * rows * columns > limit:
            columns = math.ceil(width / kernel)
    return rows, columns


class PooledClassifier(nn.Module):
    """A linear classifier on average-pooled features, whose weights start at zero; one a group.

    Args:
        shape: features of one image over all groups, (C, H, W) or (C,).
        classes: number of classes.
        groups: G.
        stop_gradient: whether group g's classifier sees all C channels, the others detached, or its own C/G only.
        limit: maps are pooled until a classifier has at most this many inputs (vectors are not pooled).

    Shapes: input [B, C, H, W] or [B, C], output [G, B, classes].
    """

    def __init__(self, shape: tuple[int, ...], classes: int, groups: int, stop_gradient: bool, limit: int) -> None:
        super().__init__()
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        inputs = shape[0] if self.stop_gradient else shape[0] // groups
        self.pool = nn.Identity()
        if len(shape) == 3:
            sides = pooled_sides(inputs, (shape[1], shape[2]), limit)
            if sides != shape[1:]:
                self.pool = nn.AdaptiveAvgPool2d(sides)
            inputs *= sides[0] * sides[1]
        self.linear = GroupLinear(groups, inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [G, B, classes]."""
        return self.linear(seen_by_groups(self.pool(x), self.groups, self.stop_gradient))


class SimilarityHead(nn.Module):
    """What the similarity loss compares: a layer without bias, then the standard deviation over positions.

    The layer is a 3x3 convolution with as many channels out as in; on vectors it is linear, and there are no
    positions. A map of one position stands for itself.

    Args:
        shape: features of one image over all groups, (C, H, W) or (C,).
        groups: G.
        stop_gradient: whether group g's layer sees all C channels, the others detached, or its own C/G only.
        pool_others: side of the squares that the others are averaged over first [pixels].

    Shapes: input [B, C, H, W] or [B, C], output [G, B, C] with ``stop_gradient``, else [G, B, C/G].
    """

    def __init__(self, shape: tuple[int, ...], groups: int, stop_gradient: bool, pool_others: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        channels = shape[0] * (groups if self.stop_gradient else 1)
        self.layer: nn.Module
        if len(shape) == 3 and self.stop_gradient:
            self.layer = StopGradientConv2d(shape[0], shape[0], 1, groups, pool_others)
        else:  # a linear layer is a 1x1 convolution of one position
            self.layer = conv(channels, channels, 3 if len(shape) == 3 else 1, 1, groups, dense=False)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors [G, B, C or C/G]."""
        if x.dim() == 2:
            x_GBC = seen_by_groups(x, self.groups, self.stop_gradient)
            x = x_GBC.transpose(0, 1).reshape(len(x), -1, 1, 1)
        y_BCP = self.layer(x).flatten(2)
        y_BCP = y_BCP.float() if y_BCP.dtype.itemsize < 4 else y_BCP
        y_BC = y_BCP.std(-1) if y_BCP.shape[-1] > 1 else y_BCP.squeeze(-1)
        return split_vectors(y_BC, self.groups)
