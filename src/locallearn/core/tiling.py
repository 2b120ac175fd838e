"""Blocks that see the patches of an image one by one (method ``greedy-infomax``)."""

from __future__ import annotations

from torch import nn

from locallearn.core.methods import ModuleLayout
from locallearn.losses.objectives import objectives
from locallearn.losses.patch_infonce import patch_of
from locallearn.nn.tiles import ByTile, Tiles, patches_along


def tile_side(plan: ModuleLayout, image: tuple[int, int, int]) -> int:
    """Side of the patches of images (C, H, W) that the module's loss names [pixels].

    Raises:
        ConfigError: they are too large.
    """
    name = plan.objective.loss
    assert name is not None
    return patch_of(objectives.options(name, plan.objective.options, "objective.options"), image)


def tiled(blocks: nn.Sequential, patch: int, image: tuple[int, int, int], first: bool) -> nn.Sequential:
    """The same blocks by tile; the first module cuts the patches."""
    grid = patches_along(image[1], patch), patches_along(image[2], patch)
    made = nn.Sequential()
    for name, block in blocks.named_children():
        by_tile = ByTile(block, grid)
        made.add_module(name, nn.Sequential(Tiles(patch), by_tile) if first and not len(made) else by_tile)
    return made
