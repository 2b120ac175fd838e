"""AugLocal's auxiliary networks: heads that are made of copies of the backbone's own later layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from locallearn.config.own_parts import AugLocalOptions
from locallearn.errors import ConfigError
from locallearn.nn.backbones import Block, Place
from locallearn.nn.blocks import Residual
from locallearn.nn.groups import GroupLinear, StopGradientConv2d, split_vectors
from locallearn.nn.heads import HeadInput, heads, seen_by_groups
from locallearn.nn.pool import GlobalAveragePool


def depth_of(module: int, modules: int, depth: int, slope: float) -> int:
    r"""Layers of the head of module i = k - 1 of L (Ma et al., 2024), rounded half to even as its public code does.

    .. math:: d_i = \max(1, \mathrm{round}(d (1 - s) + s)), \quad s = \frac{c i}{L - 2}

    Args:
        module: k, counted from 1.
        modules: L.
        depth: d, layers of the first module's head.
        slope: c, how steeply it falls: 0 not at all, 1 to one layer for the last module that has a head.
    """
    share = slope * (module - 1) / (modules - 2) if modules > 2 else 0.0
    return max(1, round(depth * (1 - share) + share))


def sampled(layer: int, layers: int, depth: int) -> list[int]:
    """The layers after ``layer`` that its head copies: round(i + (n - i - 1) j / d) for j = 1..d (Ma et al., 2024).

    All that are left where there are no more than d.

    Args:
        layer: i, counted from 0.
        layers: n.
        depth: d.
    """
    left = layers - layer - 1
    if left <= depth:
        return list(range(layer + 1, layers))
    return [round(layer + left / depth * j) for j in range(1, depth + 1)]


class AugLocalHead(nn.Module):
    """AugLocal's head (Ma et al., 2024): some of the backbone's later layers, sampled uniformly, and a classifier.

    Layer j has the channels of the backbone's layer that it copies. It halves the map's sides where the backbone does
    so between the layers that are copied, once a layer. Global average pooling and one linear layer follow. The
    public code halves where channels double, which is the same for the CIFAR ResNets, and has a batch norm before
    the linear layer of a head of one layer, which is left out here.

    With several groups every group's head is a slice of those layers, 1/G as wide, as its module is. With
    ``stop_gradient`` the first convolutions see the channels of all groups, their own with gradient and the others
    detached (Algorithm 2); without, every group sees its own channels only. A backbone without later layers, or
    features that are vectors, leave pooling and the linear layer.

    Args:
        shape: features of one image over all groups, (C, H, W) or (C,).
        outputs: size of each head's output.
        place: where the module ends in the backbone.
        depth: d, layers of the first module's head.
        slope: c, how steeply the number falls with depth.
        groups: G.
        stop_gradient: whether heads see the other groups' features.
        pool_others: side of the squares that those are averaged over first [pixels].

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].

    Raises:
        ConfigError: a later block cannot be copied in groups.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        place: Place,
        depth: int = 2,
        slope: float = 0.5,
        *,
        groups: int = 1,
        stop_gradient: bool = False,
        pool_others: int = 1,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.stop_gradient = stop_gradient and groups > 1
        self.layers = nn.Sequential()
        channels = shape[0]
        for block, halve in self._copied(shape, place, depth, slope):
            assert block.like is not None  # they are among the layers
            if groups > 1 and (not block.splits or block.channels % groups):
                raise ConfigError("width", groups, f"a divisor of the {block.channels} channels of {block.name}")
            make = block.like(channels, block.channels, halve)
            first = not len(self.layers)
            made = make(groups=groups, dense=first and self.stop_gradient)
            self.layers.append(see_others(made, groups, pool_others) if first and self.stop_gradient else made)
            channels = block.channels
        self.pool = GlobalAveragePool() if len(shape) == 3 else nn.Identity()
        whole = self.stop_gradient and not len(self.layers)
        self.linear = GroupLinear(groups, channels if whole else channels // groups, outputs)

    def _copied(self, shape: Sequence[int], place: Place, depth: int, slope: float) -> list[tuple[Block, bool]]:
        """The blocks to copy, and which of them halve the map's sides."""
        if len(shape) != 3:
            return []
        layers, copied, pending = place.layers(), [], 0
        n_layers = depth_of(place.module, place.modules, depth, slope)
        before = place.block
        for i in sampled(layers.index(place.block), len(layers), n_layers):
            block = layers[i]
            pending += round(math.log2(place.shapes[before][1] / place.shapes[block][1]))
            copied.append((place.blocks[block], pending > 0))
            pending -= pending > 0
            before = block
        return copied

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        x = self.pool(self.layers(x))
        if len(self.layers):
            return self.linear(split_vectors(x, self.groups))
        return self.linear(seen_by_groups(x, self.groups, self.stop_gradient))


def see_others(block: nn.Module, groups: int, pool_others: int = 1) -> nn.Module:
    """Let a dense block of ``groups`` groups see the others' channels without gradient (Algorithm 2).

    Its convolutions that see all channels (the first and a shortcut's) hand a gradient to each group's own alone.
    """
    for parent in list(block.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                rows, kernel = layer.out_channels // groups, layer.kernel_size[0]
                seeing = StopGradientConv2d(layer.in_channels, rows, layer.stride[0], groups, pool_others, kernel)
                setattr(parent, name, seeing)
    if isinstance(block, Residual):
        block.dense = False  # a rank that has some groups only is given their channels and no others
    return block


@heads.register("auglocal", options=AugLocalOptions)
def auglocal(given: HeadInput) -> AugLocalHead:
    """AugLocal's head.

    Raises:
        ConfigError: the module is part of a user's own model, whose later layers are not known.
    """
    options: AugLocalOptions = given.options
    if given.place is None:
        raise ConfigError("objective.head", "auglocal", "another head in a model of your own, such as 1c2f")
    return AugLocalHead(
        given.shape,
        given.outputs,
        given.place,
        options.layers,
        options.slope,
        groups=given.groups,
        stop_gradient=given.stop_gradient,
        pool_others=given.pool_others,
    )
