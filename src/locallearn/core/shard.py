"""A module with some of its groups only: their rows of every parameter and buffer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from locallearn.core.module import LocalModule
from locallearn.errors import ConfigError
from locallearn.nn.blocks import Residual
from locallearn.nn.groups import GroupLinear, OwnChannels
from locallearn.nn.narrow import narrowed


def rows(tensor: Tensor, groups: range, total: int) -> Tensor:
    """The rows of some groups (counted from 0) of a tensor stacked by ``total`` groups; counters have no rows."""
    if tensor.dim() == 0 or len(groups) == total:
        return tensor
    n = tensor.shape[0] // total
    return tensor[groups.start * n : groups.stop * n]


def join(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Put together what ``rows`` took apart.

    Args:
        parts: tensors by name, of ranks by rising groups; a rank has the tensors of its own modules alone.
    """
    together: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, tensor in part.items():
            together.setdefault(name, []).append(tensor)
    return {name: found[0] if found[0].dim() == 0 else torch.cat(found) for name, found in together.items()}


def shard(module: LocalModule, groups: range, replicas: int = 1) -> LocalModule:
    """A copy of a module that has some of its groups only.

    It computes as the module does while its peers are current (``locallearn.nn.peers``).

    Args:
        module: all groups.
        groups: those to keep, contiguous, counted from 0.
        replicas: how many ranks have the same groups; with several, batch norm is torch's, which asks the others.
    """
    part = copy.deepcopy(module)
    if len(groups) < module.groups:
        for layer in part.modules():
            _narrow(layer, groups, module.groups)
            for held in (layer._parameters, layer._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = _own(tensor, f"{type(layer).__name__}.{name}", groups, module.groups)
        for layer in part.modules():
            if isinstance(layer, Residual):
                layer.shortcut_of(groups, module.groups)
        part.groups, part.first = len(groups), groups.start
    return narrowed(part) if len(groups) < module.groups and replicas == 1 else part


def _own(tensor: Tensor, name: str, groups: range, total: int) -> Any:
    stacked = tensor.dim() > 0 and len(tensor) % total == 0
    if not stacked and isinstance(tensor, nn.Parameter):
        shape = " x ".join(map(str, tensor.shape)) or "one number"
        expected = f"1 with parameter {name} ({shape}), of which {total} groups have no rows of their own"
        raise ConfigError("mesh.width", total // len(groups), expected)
    own = (rows(tensor.detach(), groups, total) if stacked else tensor.detach()).clone()
    return nn.Parameter(own) if isinstance(tensor, nn.Parameter) else own


_SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("out_channels",),
    nn.modules.batchnorm._BatchNorm: ("num_features",),
    nn.modules.instancenorm._InstanceNorm: ("num_features",),
    nn.GroupNorm: ("num_channels",),
    nn.PReLU: ("num_parameters",),
}
"""Attributes that count rows."""

_OF_ALL = (nn.LayerNorm, nn.RMSNorm, _SpectralNorm)


def _narrow(layer: Any, groups: range, total: int) -> None:
    """Set the sizes of one layer to those of some groups."""
    n = len(groups)
    for kind, names in _SIZES.items():
        for name in names if isinstance(layer, kind) else ():
            setattr(layer, name, getattr(layer, name) // total * n)
    if isinstance(layer, nn.Conv2d):
        _narrow_conv(layer, groups, total)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups = _share(layer.num_groups, "normalisation", groups, total)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        kind = type(layer).__name__
        raise ConfigError("mesh.width", total // n, f"1 with a {kind}, whose groups are not shared out; or a Conv2d")
    elif isinstance(layer, _OF_ALL):
        kind = type(layer).__name__.removeprefix("_")
        raise ConfigError("mesh.width", total // n, f"1 with a {kind}, which looks at the channels of all groups")
    elif getattr(layer, "groups", None) == total:
        setattr(layer, "groups", n)  # noqa: B010 (of any layer)
    elif isinstance(layer, GroupLinear):
        layer.outputs = layer.outputs // total * n


def _share(own: int, kind: str, groups: range, total: int) -> int:
    """How many of the groups that a layer itself has belong to some groups."""
    if own % total:
        expected = f"1 with a {kind} of {own} groups, which cannot be shared out by {total}"
        raise ConfigError("mesh.width", total // len(groups), expected)
    return own // total * len(groups)


def _narrow_conv(layer: nn.Conv2d, groups: range, total: int) -> None:
    """A convolution's own groups, of which a depthwise one has as many as channels, are shared out like its rows."""
    if layer.groups == 1:  # it sees all channels
        return
    layer.groups = _share(layer.groups, "convolution", groups, total)
    own, layer.in_channels = OwnChannels(groups, total), layer.in_channels // total * len(groups)
    # the first layer after a cut is given the channels of all groups
    layer.register_forward_pre_hook(
        lambda conv, given: (own(given[0]), *given[1:]) if given[0].shape[1] > conv.in_channels else None
    )
