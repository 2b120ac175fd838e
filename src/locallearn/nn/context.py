"""What a module is given beside the features of the one before it: context, which travels forward (ContSup)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.config import ContextName
from locallearn.errors import ConfigError
from locallearn.nn.pool import GlobalAveragePool
from locallearn.nn.score_heads import grid

_HIDDEN = 12
"""Channels between the two layers on an image or on ids of tokens, as published."""

_OTHERS = 8
"""Tokens at most that stand before those of the context."""


class Fusion(nn.Module):
    r"""Adds what an adapter makes of the context to a module's features (ContSup, Yu et al., 2023).

    .. math:: F_k(\mathrm{sg}[h_{k-1}] + A_k(\mathrm{sg}[c]))

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


class ToTokens(nn.Module):
    """Maps as tokens: averaged to the tokens' grid, row by row; tokens before that (of a class) are zeros.

    Where the tokens are no grid of the picture all of them are the mean over it.

    Args:
        tokens: T.
        size: H and W of the picture.

    Shapes: input [B, C, h, w], output [B, T, C].
    """

    def __init__(self, tokens: int, size: tuple[int, int]) -> None:
        super().__init__()
        found = grid((tokens, 1), size)
        self.tokens, self.grid = tokens, found if all(found) else None

    def forward(self, x: Tensor) -> Tensor:
        """The tokens."""
        if self.grid is None:
            return x.mean((2, 3))[:, None].expand(-1, self.tokens, -1)
        tokens = F.adaptive_avg_pool2d(x, self.grid).flatten(2).mT
        return F.pad(tokens, (0, 0, self.tokens - tokens.shape[1], 0))


class AfterOthers(nn.Module):
    """Tokens behind some that stand for nothing of the context and are zeros, [B, T, C] -> [B, others + T, C]."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others = others

    def forward(self, x: Tensor) -> Tensor:
        """The tokens."""
        return F.pad(x, (0, 0, self.others, 0))


class MeanOfTokens(nn.Module):
    """The mean of tokens, [B, T, C] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean."""
        return x.mean(1)


def build_adapter(
    kind: str, context: Sequence[int], shape: Sequence[int], vocabulary: int = 0, groups: int = 1
) -> nn.Sequential:
    """What makes features of a module's form of its context.

    The published adapters are for maps, between batch norms and ReLUs: of an image two convolutions 3x3 by way of 12
    channels (its mode E), of features one convolution 1x1 (its mode R1); then the map is averaged to the features'
    size. Tokens have a linear layer and layer norm in their place, so that no token sees a later one; ids of tokens
    are an embedding of 12 channels first. Vectors have a linear layer and batch norm.

    Args:
        kind: of the context.
        context: its shape for one example: (C, H, W), (T, C) or (C,); (T,) for ids.
        shape: of what the module is given of one example.
        vocabulary: how many ids there are; 0 where the context is no ids.
        groups: G; every group has a slice of the layers on maps, which makes its own channels.

    Raises:
        ConfigError: the module is given positions that its context does not have.
    """
    width = shape[0] if len(shape) == 3 else shape[-1]
    if vocabulary:
        layers: list[nn.Module] = [nn.Embedding(vocabulary, _HIDDEN), *_linear(_HIDDEN, width, nn.LayerNorm(width))]
    elif len(context) == 3 and kind == "image":
        hidden = _HIDDEN * groups
        layers = [*_convolution(context[0], hidden, 3), *_convolution(hidden, width, 3, groups)]
    elif len(context) == 3:
        layers = _convolution(context[0], width, 1)
    else:
        norm = nn.LayerNorm(width) if len(context) == 2 else nn.BatchNorm1d(width)
        layers = _linear(context[-1], width, norm)
    end = _placed((*context, width) if vocabulary else tuple(context), tuple(shape))
    if end is None:
        expected = f"none where a module is given {tuple(shape)} and its context {tuple(context)} has no such places"
        raise ConfigError("context", kind, expected)
    return nn.Sequential(*layers, *end)


def _placed(context: tuple[int, ...], shape: tuple[int, ...]) -> list[nn.Module] | None:
    """What brings a map, tokens or a vector with the module's channels to its features' form; None if nothing."""
    forms = len(context), len(shape)
    if forms == (3, 3):
        return [nn.AdaptiveAvgPool2d((shape[1], shape[2]))]
    if forms == (3, 2):
        return [ToTokens(shape[0], (context[1], context[2]))]
    if forms == (3, 1):
        return [GlobalAveragePool()]
    if forms == (2, 2) and 0 <= shape[0] - context[0] <= _OTHERS:
        return [AfterOthers(shape[0] - context[0])] if shape[0] > context[0] else []
    if forms == (2, 1):
        return [MeanOfTokens()]
    return [] if forms == (1, 1) else None


def _convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def _linear(inputs: int, outputs: int, norm: nn.Module) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), norm, nn.ReLU()]
