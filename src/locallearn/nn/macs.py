"""Multiply-accumulates of a forward pass, counted by one dry run on the meta device.

The accounting is that of Tables 3.4 and 3.5: convolution k k in/groups out H W (plus one per output where it has a
bias), batch norm 2 per output element, ReLU 1 per element, pooling 1 per input element, linear in * out + out;
additions, interpolation, sigmoid and softmax are free. Layer norm counts as batch norm does, GELU as ReLU, and
attention over T tokens 2 T per output element: queries with keys, and weights with values.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, singledispatch

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from locallearn.nn.groups import GroupLinear, StopGradientConv2d
from locallearn.nn.hooks import removed_after
from locallearn.nn.pool import GlobalAveragePool
from locallearn.nn.vit import Attend


@singledispatch
def layer_macs(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    """Multiply-accumulates of one layer in a forward pass; register an implementation for a layer of your own."""
    return 0


@layer_macs.register(nn.Conv1d)
@layer_macs.register(nn.Conv2d)
@layer_macs.register(nn.Conv3d)
@layer_macs.register(StopGradientConv2d)
def _(layer: nn.Conv2d | StopGradientConv2d, inputs: Tensor, output: Tensor) -> int:
    return output.numel() * (layer.weight[0].numel() + _has_bias(layer))


@layer_macs.register(nn.BatchNorm1d)
@layer_macs.register(nn.BatchNorm2d)
@layer_macs.register(nn.GroupNorm)
@layer_macs.register(nn.LayerNorm)
def _(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    return 2 * output.numel()


@layer_macs.register(nn.ReLU)
@layer_macs.register(nn.LeakyReLU)
@layer_macs.register(nn.GELU)
@layer_macs.register(nn.SiLU)
@layer_macs.register(nn.MaxPool2d)
@layer_macs.register(nn.AvgPool2d)
@layer_macs.register(nn.AdaptiveAvgPool2d)
@layer_macs.register(GlobalAveragePool)
def _(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    return inputs.numel()


@layer_macs.register(nn.Linear)
@layer_macs.register(GroupLinear)
def _(layer: nn.Linear | GroupLinear, inputs: Tensor, output: Tensor) -> int:
    return output.numel() * (layer.weight.shape[1] + _has_bias(layer))


@layer_macs.register(Attend)
def _(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    return 2 * output.numel() * output.shape[1]


def _has_bias(layer: nn.Module) -> bool:
    return getattr(layer, "bias", None) is not None


@dataclass(frozen=True)
class LayerCount:
    """One call of one layer.

    Attributes:
        layer: the layer.
        macs: its multiply-accumulates in a forward pass.
        outputs: how many numbers came out.
        given: the id of what it was given.
        returns: whether that wants a gradient.
    """

    layer: nn.Module
    macs: int
    outputs: int
    given: int
    returns: bool

    @property
    def step_macs(self) -> int:
        """Multiply-accumulates with the backward pass: as many for the gradient by the input, and by weights.

        A stop-gradient convolution has only the gradient by every group's own channels.
        """
        by_input = self.macs * self.returns
        if isinstance(self.layer, StopGradientConv2d):
            by_input //= self.layer.groups
        has_weights = next(self.layer.parameters(recurse=False), None) is not None
        return self.macs * (1 + has_weights) + by_input


@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[list[LayerCount]]:
    """Count every call of the layers of ``module`` while the context lasts, in order, on whatever data runs."""
    calls: list[LayerCount] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs, given = layer_macs(layer, inputs[0], output), inputs[0]
        calls.append(LayerCount(layer, macs, output.numel(), id(given), given.requires_grad))

    free = layer_macs.dispatch(object)
    # what costs nothing is not hooked: containers may take and give anything
    layers = [layer for layer in module.modules() if layer_macs.dispatch(type(layer)) is not free]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with removed_after(hooks):
        yield calls


@dataclass(frozen=True)
class DryRun:
    """What one image costs in a forward pass: multiply-accumulates, and the shape [C, H, W] or [C] that comes out."""

    macs: int
    shape: tuple[int, ...]


def dry_run(module: nn.Module, shape: tuple[int, ...]) -> DryRun:
    """Count the forward pass of ``module`` on one image of ``shape`` without computing anything."""
    module = copy.deepcopy(module).to("meta").eval()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and type(layer).forward is _BatchNorm.forward:
            layer.forward = partial(_normalised, layer)  # type: ignore[method-assign]
    with torch.no_grad(), counting(module) as calls:
        output = module(torch.empty(1, *shape, device="meta"))
    dims = output.shape[-1:] if output.dim() == 3 else output.shape[1:]  # heads give [G, B, outputs]
    return DryRun(sum(call.macs for call in calls), tuple(dims))


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What a batch norm gives of a tensor without data, which torch finds out in milliseconds of Python."""
    norm._check_input_dim(x)
    return x if x.shape[1] == norm.num_features else _BatchNorm.forward(norm, x)  # which says what is wrong
