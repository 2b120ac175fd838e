"""Channel counts that groups divide."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from locallearn.nn.backbones import Backbone, Block, made_block


def divisible(backbone: Backbone, image_channels: int, groups: Sequence[int]) -> Backbone:
    """Narrow a plain chain (a VGG) until its groups divide every block's channels.

    The thesis splits 128 channels into 6 groups (Table 3.1) without saying how. Here each group has 128 // 6 = 21
    and the rest are left out. Backbones with residual blocks are given back as they are: theirs must match.

    Args:
        backbone: to be split.
        image_channels: channels of the image.
        groups: channel groups of each block.
    """
    if not all(_is_plain(block) for block in backbone.blocks):
        return backbone
    blocks: list[Block] = []
    before = now = image_channels
    for block, n in zip(backbone.blocks, groups, strict=True):
        channels = block.channels // n * n or block.channels
        blocks.append(_resized(block, before, now, channels))
        before, now = block.channels, channels
    return dataclasses.replace(backbone, blocks=tuple(blocks))


def _is_plain(block: Block) -> bool:
    make = block.make
    return isinstance(make, partial) and make.func is made_block and make.args[0] in ("ConvBlock", "LinearBlock")


def _resized(block: Block, before: int, now: int, channels: int) -> Block:
    """The block after one of ``now`` instead of ``before`` channels, with ``channels`` of its own."""
    assert isinstance(block.make, partial)
    kind, inputs, _, *others = block.make.args  # inputs of a linear block are channels times positions
    make = partial(made_block, kind, inputs // before * now, channels, *others)
    return dataclasses.replace(block, channels=channels, make=make)
