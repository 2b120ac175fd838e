"""Patches of an image encoded one by one, laid out side by side as one map (Greedy InfoMax)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def patches_along(side: int, patch: int) -> int:
    """How many patches of this side, each half over the one before, lie along a side [patches]."""
    return (side - patch) // max(patch // 2, 1) + 1


class Tiles(nn.Module):
    """Cuts images into patches that overlap by half, and lays them side by side: [B, C, H, W] -> [B, C, n p, m p].

    Args:
        patch: side p of a patch [pixels].
    """

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """The map of n x m patches."""
        p, step = self.patch, max(self.patch // 2, 1)
        cut_BCnmpp = x.unfold(2, p, step).unfold(3, p, step)
        return cut_BCnmpp.transpose(3, 4).flatten(4, 5).flatten(2, 3)


class ByTile(nn.Module):
    """Applies a block to each tile of a map alone: [B, C, n h, m w] -> [B, D, n i, m j].

    Nothing of a tile reaches another one, but for batch norm, whose statistics are of all tiles.

    Args:
        block: maps [B, C, h, w] or vectors [B, C] out of maps [B, C, h, w].
        grid: n and m.
    """

    def __init__(self, block: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: Tensor) -> Tensor:
        """The map of what the block makes of every tile."""
        n, m = self.grid
        apart = x.unflatten(3, (m, -1)).unflatten(2, (n, -1)).permute(0, 2, 4, 1, 3, 5)
        made = self.block(apart.flatten(0, 2).contiguous())
        if made.dim() == 2:
            made = made[:, :, None, None]
        made = made.unflatten(0, (len(x), n, m)).permute(0, 3, 1, 4, 2, 5)
        return made.flatten(4, 5).flatten(2, 3)


def tile_means(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean of every tile, [B, C, n h, m w] -> [B, C, n, m]."""
    n, m = grid
    return F.avg_pool2d(x, (x.shape[2] // n, x.shape[3] // m))
