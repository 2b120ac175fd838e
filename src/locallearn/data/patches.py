"""Images as patches, and the patches that masked training shows a network (He et al., 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Masking(NamedTuple):
    """What masked training shows of an image: ``visible`` of its patches, each of ``side`` x ``side`` pixels."""

    side: int
    visible: int


def patches(images_BCHW: Tensor, side: int) -> Tensor:
    """Images cut into T patches, row by row, [B, C, H, W] -> [B, T, side * side * C].

    ``side`` [pixels] must divide H and W. The numbers of a patch are its pixels row by row, with all channels of one
    beside each other.
    """
    rows, columns = images_BCHW.shape[2] // side, images_BCHW.shape[3] // side
    x_BChswt = images_BCHW.unflatten(3, (columns, side)).unflatten(2, (rows, side))
    return x_BChswt.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def draw_visible(images: int, total: int, visible: int, generator: torch.Generator) -> Tensor:
    """Which patches of every image are visible: ``visible`` of ``total`` at random, rising, int64 [B, visible]."""
    return torch.rand(images, total, generator=generator).argsort(1)[:, :visible].sort(1).values


def shown(images_BCHW: Tensor, side: int, visible_BV: Tensor) -> Tensor:
    """What a masked network is given of images: their visible patches alone, [B, side * side * C + 1, 1, V].

    Every column is one patch; below its pixels stands its number in the image.
    """
    x_BVF = torch.take_along_dim(patches(images_BCHW, side), visible_BV[..., None], 1)
    return torch.cat([x_BVF, visible_BV[..., None].to(x_BVF.dtype)], 2).mT[:, :, None]
