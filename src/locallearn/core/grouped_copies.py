"""Copies of a user's own blocks as G groups: convolutions and batch norms that each group has a slice of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from locallearn.errors import ConfigError
from locallearn.nn.copies import copied
from locallearn.nn.groups import StopGradientConv2d
from locallearn.nn.trace import Trace
from locallearn.nn.width import is_inner


class SeeingConv2d(nn.Module):
    """A convolution of G groups that each see all channels, their own with gradient (Algorithm 2), with its bias.

    Args:
        layer: a dense convolution of the same sizes, padded by half its kernel; its weights are not taken.
        groups: G.
        pool_others: side of the squares that the other groups' channels are averaged over [pixels].

    Shapes: input [B, C, H, W], output [B, C', H', W'].
    """

    stop_gradient = True

    def __init__(self, layer: nn.Conv2d, groups: int, pool_others: int = 1) -> None:
        super().__init__()
        rows, kernel, stride = layer.out_channels // groups, layer.kernel_size[0], layer.stride[0]
        self.conv = StopGradientConv2d(layer.in_channels, rows, stride, groups, pool_others, kernel)
        self.bias = None if layer.bias is None else nn.Parameter(torch.empty(layer.out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.conv.weight, a=5**0.5)
        if self.bias is not None:
            bound = self.conv.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        out = self.conv(x)
        return out if self.bias is None else out + self.bias[:, None, None]


class Grouping:
    """Makes blocks of a head for G groups of dense ones, each layer in as many slices.

    The first convolutions of the first block see all channels, the other groups' without gradient, where groups are
    to see each other; all others are grouped ones.

    Args:
        head: the head's name, for messages.
        groups: G.
        stop_gradient: whether groups see each other.
        pool_others: side of the squares that others' channels are averaged over [pixels].
    """

    def __init__(self, head: str, groups: int, stop_gradient: bool, pool_others: int) -> None:
        self.head, self.groups = head, groups
        self.stop_gradient, self.pool_others = stop_gradient, pool_others

    def of_block(self, model: nn.Module, found: Trace, path: str, first: bool) -> nn.Module:
        """A copy of the dense block of that path, in groups and with weights of its own.

        Args:
            model: the user's, with dense convolutions.
            found: a forward pass of it.
            path: of the block.
            first: whether it is the first of the head.

        Raises:
            ConfigError: it has layers that cannot be split, or channels that do not divide.
        """
        call = next(call for call in found.calls if call.path == path)
        block = copied(model.get_submodule(path))
        for name, layer in list(block.named_modules()):
            if next(layer.parameters(recurse=False), None) is None:
                continue
            where = f"{path}.{name}".strip(".")
            if isinstance(layer, nn.Conv2d):
                outer = first and not is_inner(found, where, call.start, call.end, model)
                made = self.of_convolution(layer, where, outer)
                if not name:
                    return made
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, made)
            elif type(layer) is not nn.BatchNorm2d:
                raise self._refused(f"whose copy has {type(layer).__name__} {where}, no convolution or batch norm")
        return block

    def of_convolution(self, layer: nn.Conv2d, where: str, outer: bool) -> nn.Module:
        """A convolution's groups; an ``outer`` one is given the module's features.

        Raises:
            ConfigError: its channels do not divide, or it is none that groups can share.
        """
        if layer.groups != 1 or layer.out_channels % self.groups or layer.in_channels % self.groups:
            sizes = f"{layer.in_channels} -> {layer.out_channels}"
            raise self._refused(f"where {where} ({sizes} channels, {layer.groups} groups) does not divide by it")
        if not (outer and self.stop_gradient):
            settings: dict[str, Any] = {"padding_mode": layer.padding_mode, "bias": layer.bias is not None}
            return nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                self.groups,
                **settings,
            )
        kernel, stride = layer.kernel_size, layer.stride
        half = layer.padding in ((kernel[0] // 2,) * 2, "same") and layer.padding_mode == "zeros"
        square = kernel[0] == kernel[1] and kernel[0] % 2 == 1 and stride[0] == stride[1]
        if not (half and square and set(layer.dilation) == {1}):
            raise self._refused(f"where {where} is no square convolution padded by half its kernel")
        return SeeingConv2d(layer, self.groups, self.pool_others)

    def check(self, head: nn.Module, shape: tuple[int, ...]) -> None:
        """Refuse a head in which a group's scores have a gradient in another group's weights.

        Args:
            head: it; a copy is tried.
            shape: the module's features of one example.

        Raises:
            ConfigError: its forward pass mixes groups.
        """
        head = copied(head).train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for parameter in head.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5) if parameter.dim() < 2 else nn.init.normal_(parameter)
            like = next(head.parameters())
            scores_GBO = head(torch.randn(4, *shape, dtype=like.dtype, device=like.device))
            for group, own in enumerate(scores_GBO):
                grads = torch.autograd.grad(
                    own, list(head.parameters()), torch.randn_like(own), retain_graph=True, allow_unused=True
                )
                rows = [grad.chunk(self.groups) for grad in grads if grad is not None]
                if any(row.any() for each in rows for other, row in enumerate(each) if other != group):
                    raise self._refused("where a block that it copies mixes channels")

    def _refused(self, why: str) -> ConfigError:
        return ConfigError("width", self.groups, f"1 with head {self.head} {why}; 1c2f goes with any groups")
