"""Width groups of a user's own model, where its modules are convolutions and batch norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.errors import ConfigError
from locallearn.nn.copies import copied
from locallearn.nn.features import features_of, with_features
from locallearn.nn.groups import own_channels
from locallearn.nn.pieces import Piece
from locallearn.nn.trace import Trace


def split_channels(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    trace: Trace,
    parts: Sequence[Piece],
    groups: int,
) -> list[str]:
    """Split every module but the last into G channel groups, in place, and return the paths of grouped convolutions.

    A convolution with another one of its module before it becomes a grouped one and keeps the weights inside its
    groups; the first ones of a module see the channels of all groups. Afterwards the model runs on the example once,
    to see that no group's features depend on another group's weights.

    Raises:
        ConfigError: a module has other layers with weights, its channels do not divide, or its forward pass mixes
            channels.
    """
    if len(parts) == 1:
        raise ConfigError("width", groups, "1 with one module, which ends in the model's own scores")
    paths = [part.path for part in parts[:-1]]
    ends = [next(call.end for call in trace.calls if call.path == path) for path in paths]
    grouped = []
    for part, start, end in zip(parts, [-1, *ends], ends, strict=False):
        for path, layer in _layers(model, part, groups).items():
            if isinstance(layer, nn.Conv2d) and _split(layer, path, groups, is_inner(trace, path, start, end, model)):
                grouped.append(path)
    _check_independent(copied(model), args, dict(kwargs), parts[:-1], groups)
    return grouped


@torch.no_grad()
def join_channels(layer: nn.Conv2d) -> None:
    """Make a grouped convolution the dense one that computes the same: weights between groups are zero."""
    rows, _, *kernel = layer.weight.shape
    dense = layer.weight.new_zeros(layer.groups, rows // layer.groups, layer.groups, layer.weight.shape[1], *kernel)
    for group, own in enumerate(layer.weight.chunk(layer.groups)):
        dense[group, :, group] = own
    layer.weight = nn.Parameter(dense.view(rows, layer.in_channels, *kernel))
    layer.groups = 1


def _layers(model: nn.Module, part: Piece, groups: int) -> dict[str, nn.Module]:
    """The layers that hold a module's weights, by path."""
    layers = {name.rpartition(".")[0]: model.get_submodule(name.rpartition(".")[0]) for name in part.parameters}
    for path, layer in layers.items():
        plain = isinstance(getattr(layer, "weight", None), (nn.Parameter, type(None)))  # and not made by a hook
        if type(layer) not in (nn.Conv2d, nn.BatchNorm2d) or getattr(layer, "groups", 1) != 1 or not plain:
            kind = f"{type(layer).__name__} {path}".strip()
            expected = (
                f"1: only modules of dense convolutions and batch norm can be split in width, and {kind} is neither"
            )
            raise ConfigError("width", groups, expected)
    return layers


def is_inner(trace: Trace, path: str, start: float, end: float, model: nn.Module) -> bool:
    """Whether another convolution comes before this one between two moments of a forward pass."""
    convs = {
        call.node[0]: call.path
        for call in trace.calls
        if call.node
        and start <= call.start
        and call.end <= end
        and isinstance(model.get_submodule(call.path), nn.Conv2d)
    }
    waiting = [node for node, name in convs.items() if name == path]
    seen = set(waiting)
    while waiting:
        for earlier in trace.before(waiting.pop()):
            if earlier in convs:
                return True
            if earlier not in seen and earlier._sequence_nr() >= start:
                seen.add(earlier)
                waiting.append(earlier)
    return False


@torch.no_grad()
def _split(layer: nn.Conv2d, path: str, groups: int, inner: bool) -> bool:
    """Make an inner convolution a grouped one, and tell whether it is one now."""
    if layer.out_channels % groups or (inner and layer.in_channels % groups):
        channels = f"{layer.in_channels} -> {layer.out_channels}"
        raise ConfigError("width", groups, f"a divisor of the channels of {path} ({channels})")
    if inner:
        layer.groups = groups
        layer.weight = nn.Parameter(own_channels(layer.weight, groups, layer.weight.shape[1] // groups, 0))
    return inner


def _check_independent(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Sequence[Piece], groups: int
) -> None:
    """Refuse a module in which a group's features have a gradient in another group's weights.

    All weights of ``model``, which is a copy, are drawn anew first, and buffers that are zero: a scale that starts
    at zero would hide such a gradient. It runs as in training and as in evaluation, since training may drop layers at
    random.
    """
    features: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
        found = features_of(output)
        assert found is not None
        features.append(found)
        return with_features(output, found.detach())

    for part in parts:
        model.get_submodule(part.path).register_forward_hook(keep)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5) if parameter.dim() < 2 else nn.init.normal_(parameter)
        for buffer in model.buffers():
            if buffer.is_floating_point() and not buffer.any():
                nn.init.uniform_(buffer, 0.5, 1.5)
        for training in (True, False):
            features.clear()
            model.train(training)(*args, **kwargs)
            for part, x in zip(parts, features, strict=True):
                _check_features(model, x, part, groups)


def _check_features(model: nn.Module, x: Tensor, part: Piece, groups: int) -> None:
    weights = [model.get_parameter(name) for name in part.parameters]
    for group, own in enumerate(x.chunk(groups, 1)):
        probe = torch.randn_like(own)  # a sum of batch norm's outputs is flat
        grads = torch.autograd.grad(own, weights, probe, retain_graph=True, allow_unused=True)
        for name, grad in zip(part.parameters, grads, strict=True):
            rows = () if grad is None else grad.chunk(groups)
            if any(row.any() for other, row in enumerate(rows) if other != group):
                expected = f"1: the forward pass of the module that ends in {part.path} mixes groups ({name})"
                raise ConfigError("width", groups, expected)
