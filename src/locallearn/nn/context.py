"""What a module is given beside the features of the one before it: context, which travels forward (ContSup)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from locallearn.config import ContextName
from locallearn.errors import ConfigError

_HIDDEN = 12
"""Channels between the two convolutions on an image, as published."""


class Fusion(nn.Module):
    """Adds what an adapter makes of the context to a module's features (ContSup, Yu et al., 2023).

    The published adapters, between batch norms and ReLUs: of an image two convolutions 3x3 by way of 12 channels (its
    mode E), of the features before one convolution 1x1 (its mode R1); then the map is averaged to the features' size.
    The adapter is trained with the module. What it is given is detached, so no gradient ever leaves the module.

    Args:
        kind: ``"image"``, which travels along to every module, or ``"before"``: what the module before was given.
        adapter: makes maps like the features of the context's; None for the first module, which is given the image.

    Shapes: the image [B, C, H, W], or features and context, in; what the blocks see, and the context of the next
    module, out.
    """

    def __init__(self, kind: ContextName, adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.kind: ContextName = kind
        self.adapter = adapter

    def forward(self, carried: Any) -> tuple[Tensor, Tensor]:
        """What the module's blocks see, and the context of the next module, with their graphs."""
        features, context = carried if isinstance(carried, tuple) else (carried, carried)
        if self.adapter is not None:
            features = features + self.adapter(context)
        return features, context if self.kind == "image" else features


def build_fusion(kind: ContextName, context: tuple[int, ...], shape: tuple[int, ...]) -> Fusion:
    """The fusion of a module that is not the first.

    Args:
        kind: of the context.
        context: its shape for one image, (C, H, W).
        shape: of what the module is given of one image.

    Raises:
        ConfigError: they are no maps.
    """
    if len(context) != 3 or len(shape) != 3:
        raise ConfigError("context", kind, "none where a module is given vectors")
    if kind == "image":
        layers = [*_convolution(context[0], _HIDDEN, 3), *_convolution(_HIDDEN, shape[0], 3)]
    else:
        layers = _convolution(context[0], shape[0], 1)
    return Fusion(kind, nn.Sequential(*layers, nn.AdaptiveAvgPool2d(shape[1:])))


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
