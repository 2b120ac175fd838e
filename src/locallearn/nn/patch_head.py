"""Patch-averaged heads: a head that sees the quarters of a map one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from locallearn.config.own_parts import PatchOptions
from locallearn.nn.heads import HeadInput, build_inner, heads


def patch_side(side: int, patches: int) -> int:
    """Side of each of so many patches of a side [pixels]."""
    return math.ceil(side / patches)


def patch_starts(side: int, patches: int) -> list[int]:
    """Where patches begin on a side: evenly, the first at 0 and the last ending with the map.

    Neighbours overlap where their number does not divide the side, and a side of fewer pixels than patches has one
    patch a pixel.
    """
    n = min(side, patches)
    return [round(i * (side - patch_side(side, patches)) / max(n - 1, 1)) for i in range(n)]


class PatchHead(nn.Module):
    """A head on patches of its features, whose outputs are averaged (patch feature fusion; HPFF, Su et al., 2024).

    Patches of a batch are one larger batch for the head, so batch norm sees all of them and nothing is computed
    twice. The paper averages what patches give through one auxiliary network; its public code has patches in
    InfoPro's decoder alone, each with weights of its own. Vectors are seen whole.

    Args:
        build: makes the head for a shape (C, H, W) or (C,).
        shape: features of one image over all groups.
        patches: p; the map is cut into p x p.

    Shapes: input [B, C, H, W] or [B, C], output [G, B, outputs].
    """

    def __init__(
        self, build: Callable[[tuple[int, ...]], nn.Module], shape: tuple[int, ...], patches: int = 2
    ) -> None:
        super().__init__()
        self.patches = patches
        small = (shape[0], *(patch_side(side, patches) for side in shape[1:]))
        self.head = build(small)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all heads, [G, B, outputs]."""
        if x.dim() == 2:
            return self.head(x)
        height, width = (patch_side(side, self.patches) for side in x.shape[2:])
        cut = [
            x[:, :, top : top + height, left : left + width]
            for top in patch_starts(x.shape[2], self.patches)
            for left in patch_starts(x.shape[3], self.patches)
        ]
        out_GNO = self.head(torch.cat(cut))
        return out_GNO.unflatten(1, (len(cut), len(x))).mean(1)


@heads.register("patches", options=PatchOptions)
def patches(given: HeadInput) -> PatchHead:
    """A head on patches of its features."""
    options: PatchOptions = given.options
    return PatchHead(partial(build_inner, options.of, given), given.shape, options.patches)
