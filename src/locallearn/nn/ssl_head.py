"""The projection head and the feature noise of blockwise self-supervised learning (Siddiqui et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from locallearn.config.own_parts import WideProjectorOptions
from locallearn.nn.group_conv import conv
from locallearn.nn.groups import GroupLinear, StopGradientConv2d, split_vectors
from locallearn.nn.heads import GroupBatchNorm, HeadInput, heads, seen_by_groups
from locallearn.nn.norm_relu import norm_relu_mean
from locallearn.nn.pool import GlobalAveragePool


class WideProjector(nn.Module):
    """A 1x1 convolution to many channels, pooling, and a projector of three linear layers (Siddiqui et al., 2023).

    Batch norm and ReLU follow the convolution and the first two linear layers. Features that are vectors go into the
    projector at once. With ``stop_gradient`` the convolution of group g sees the channels of all groups, its own with
    gradient; without, its own alone.

    Args:
        shape: features of one image over all groups, (C, H, W) or (C,).
        outputs: size of each projection.
        channels: channels that the convolution of every group makes; 2048 in the paper, whose network has one group.
        hidden: hidden units of the projector; 8192 in the paper.
        groups: G.
        stop_gradient: whether heads see the other groups' features.
        pool_others: side of the squares that those are averaged over first [pixels].

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        channels: int = 2048,
        hidden: int = 8192,
        *,
        groups: int = 1,
        stop_gradient: bool = False,
        pool_others: int = 1,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        seen = shape[0] if self.stop_gradient else shape[0] // groups
        self.conv: nn.Module | None = None
        if len(shape) == 3:
            if self.stop_gradient:
                self.conv = StopGradientConv2d(shape[0], channels, 1, groups, pool_others, kernel=1)
            else:
                self.conv = conv(shape[0], channels * groups, 1, 1, groups, dense=False)
            self.bn, self.relu = nn.BatchNorm2d(channels * groups), nn.ReLU(inplace=True)
            self.pool = GlobalAveragePool()
            seen = channels
        self.projector = nn.Sequential()
        for _ in range(2):
            norm = GroupBatchNorm(groups * hidden)
            self.projector.extend([GroupLinear(groups, seen, hidden), norm, nn.ReLU(inplace=True)])
            seen = hidden
        self.projector.append(GroupLinear(groups, seen, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Projections of all groups, [G, B, outputs]."""
        if self.conv is None:
            return self.projector(seen_by_groups(x, self.groups, self.stop_gradient))
        x = norm_relu_mean(self.bn, self.relu, self.pool, self.conv(x))
        return self.projector(split_vectors(x, self.groups))


class FeatureNoise(nn.Module):
    """Adds noise in training: N(0, s^2) times the standard deviation of the batch's features (Siddiqui et al., 2023).

    The deviation is that of each group's own features, and no gradient goes through it; the authors' code has one.

    Args:
        strength: s, in standard deviations.
        groups: G.
    """

    def __init__(self, strength: float = 0.25, groups: int = 1) -> None:
        super().__init__()
        self.strength, self.groups = strength, groups

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, ...] of the same shape."""
        if not self.training:
            return x
        x_BGP = x.detach().flatten(1).view(len(x), self.groups, -1)
        deviation_G = x_BGP.std((0, 2)).repeat_interleave(x.shape[1] // self.groups)
        return x + self.strength * deviation_G.view(1, -1, *[1] * (x.dim() - 2)) * torch.randn_like(x)


@heads.register("wide-projector", options=WideProjectorOptions)
def wide_projector(given: HeadInput) -> WideProjector:
    """The projection head of blockwise self-supervised learning."""
    options: WideProjectorOptions = given.options
    return WideProjector(
        given.shape,
        given.outputs,
        options.channels,
        options.hidden,
        groups=given.groups,
        stop_gradient=given.stop_gradient,
        pool_others=given.pool_others,
    )
