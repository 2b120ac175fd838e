"""Multiply-accumulates of a forward pass, counted by one dry run on the meta device.

The accounting is that of Tables 3.4 and 3.5: convolution k k in/groups out H W (plus one per output where it has a
bias), batch norm 2 per output element, ReLU 1 per element, pooling 1 per input element, linear in * out + out;
additions and softmax are free.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn

from locallearn.nn.groups import GroupLinear, StopGradientConv2d


@singledispatch
def layer_macs(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    """Multiply-accumulates of one layer in a forward pass; register an implementation for a layer of your own."""
    return 0


@layer_macs.register(nn.Conv2d)
@layer_macs.register(StopGradientConv2d)
def _(layer: nn.Conv2d | StopGradientConv2d, inputs: Tensor, output: Tensor) -> int:
    bias = getattr(layer, "bias", None) is not None
    return output.numel() * (layer.weight[0].numel() + bias)


@layer_macs.register(nn.BatchNorm1d)
@layer_macs.register(nn.BatchNorm2d)
def _(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    return 2 * output.numel()


@layer_macs.register(nn.ReLU)
@layer_macs.register(nn.MaxPool2d)
@layer_macs.register(nn.AdaptiveAvgPool2d)
def _(layer: nn.Module, inputs: Tensor, output: Tensor) -> int:
    return inputs.numel()


@layer_macs.register(nn.Linear)
@layer_macs.register(GroupLinear)
def _(layer: nn.Linear | GroupLinear, inputs: Tensor, output: Tensor) -> int:
    return output.numel() * (layer.weight.shape[1] + (layer.bias is not None))


@dataclass(frozen=True)
class DryRun:
    """What one image costs in a forward pass: multiply-accumulates, and the shape [C, H, W] or [C] that comes out."""

    macs: int
    shape: tuple[int, ...]


def dry_run(module: nn.Module, shape: tuple[int, ...]) -> DryRun:
    """Count the forward pass of ``module`` on one image of ``shape`` without computing anything."""
    module = copy.deepcopy(module).to("meta").eval()
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer_macs(layer, inputs[0], output)

    for layer in module.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        output = module(torch.empty(1, *shape, device="meta"))
    dims = output.shape[-1:] if output.dim() == 3 else output.shape[1:]  # heads give [G, B, outputs]
    return DryRun(total, tuple(dims))
