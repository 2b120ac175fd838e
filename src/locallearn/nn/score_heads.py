"""Auxiliary heads whose scores have the form of a user's own model's: one vector, maps, or any other shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.nn.heads import parse_head


class MapHead(nn.Module):
    """Scores at every position: convolutions that keep the size, then bilinear upsampling.

    ``<n>c<m>f`` is n convolutions 3x3 with batch norm and ReLU (the first makes 2C channels), then m convolutions 1x1
    with ReLU between.

    Args:
        name: of the head.
        shape: features of one example, (C, h, w), or (T, C) for tokens, the last h w of which are a grid's.
        outputs: K, scores of a position.
        size: H and W of the scores at features of this shape.
        hidden: channels of the 1x1 convolutions.

    Shapes: input [B, C, h, w] or [B, T, C], output [B, K, H, W].
    """

    def __init__(self, name: str, shape: Sequence[int], outputs: int, size: tuple[int, int], hidden: int) -> None:
        super().__init__()
        n_convs, n_linears = parse_head(name)
        self.grid = grid(shape, size) if len(shape) == 2 else (shape[1], shape[2])
        self.scale = (size[0] / self.grid[0], size[1] / self.grid[1])
        channels = shape[1] if len(shape) == 2 else shape[0]
        self.layers = nn.Sequential()
        for i in range(n_convs):
            width = 2 * channels if i == 0 else channels
            self.layers.extend([nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
            channels = width
        for i in range(n_linears):
            last = i == n_linears - 1
            self.layers.append(nn.Conv2d(channels, outputs if last else hidden, 1))
            if not last:
                self.layers.append(nn.ReLU(inplace=True))
            channels = hidden

    def forward(self, x: Tensor) -> Tensor:
        """Scores of every position."""
        if x.dim() == 3:
            x = x[:, -math.prod(self.grid) :].transpose(1, 2).unflatten(2, self.grid)
        size = [round(side * factor) for side, factor in zip(x.shape[2:], self.scale, strict=True)]
        return F.interpolate(self.layers(x), size, mode="bilinear", align_corners=False)


def grid(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of (T, C) tokens that cover a picture of this size; up to 8 tokens before them are others.

    (0, 0) where T tokens are no such grid.
    """
    for extra in range(min(9, shape[0])):
        rows = round(math.sqrt((shape[0] - extra) * size[0] / size[1]))
        columns, rest = divmod(shape[0] - extra, rows) if rows else (0, 1)
        if not rest and rows * size[1] == columns * size[0]:
            return rows, columns
    return 0, 0


class Shaped(nn.Module):
    """A head whose scores are brought to the form of the model's own.

    Args:
        head: gives [G, B, outputs] or [B, outputs] for vectors, [B, T, V] for tokens, [B, K, H, W] for maps.
        shape: of the model's scores of one example.
        form: ``vector``, ``tokens``, ``flat`` (tokens of all examples one after the other) or ``maps``.
        axis: of the classes in the model's scores, examples first; 0 where they have none.
        batch: of the examples in them.

    Shapes: output [G, *scores], scores as the model's own.
    """

    def __init__(self, head: nn.Module, shape: tuple[int, ...], form: str, axis: int, batch: int) -> None:
        super().__init__()
        self.head = head
        self.shape, self.form, self.axis, self.batch = shape, form, axis, batch

    def forward(self, features: Tensor) -> Tensor:
        """Scores of every group."""
        scores = self.head(features)
        if self.form == "vector":
            scores = scores if scores.dim() == 3 else scores[None]
            return scores.unflatten(2, self.shape) if self.shape else scores.squeeze(2)
        if self.form == "flat":
            return scores.transpose(0, self.batch).flatten(0, 1)[None]
        if self.form == "maps":
            scores = self._maps(scores)
        elif not self.axis:  # one score of every token
            scores = scores.squeeze(-1)
        return scores.movedim(0, self.batch)[None] if self.batch else scores[None]

    def _maps(self, scores: Tensor) -> Tensor:
        """[B, K, H, W] as the model has it: of one class without its axis, of one row without that, classes last."""
        if not self.axis:
            scores = scores.squeeze(1)
        elif len(self.shape) == 2:
            scores = scores.squeeze(2)
        elif len(self.shape) == 4:
            scores = scores.unflatten(2, (-1, [n for i, n in enumerate(self.shape, 1) if i != self.axis][1]))
        return scores.movedim(1, self.axis) if self.axis > 1 else scores
