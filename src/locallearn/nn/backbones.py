"""Backbones as lists of blocks with their channel counts.

Names and plans are here, the blocks themselves in ``locallearn.nn.blocks`` and ``locallearn.nn.vit``, which are
imported when the first one is made: a misspelt model is refused before torch is there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from locallearn.arguments import checked_fields
from locallearn.config import ImageSize, sides
from locallearn.errors import ConfigError
from locallearn.registry import Registry

if TYPE_CHECKING:
    from torch import nn


class MakeBlock(Protocol):
    """Builds a block for a number of groups (see ``locallearn.nn.blocks``)."""

    def __call__(self, *, groups: int, dense: bool) -> nn.Module:
        """Build it."""
        ...


MakeLike = Callable[[int, int, bool], MakeBlock]
"""From channels in, channels out and whether to halve the map's sides, how to build a block of those sizes."""


@checked_fields
@dataclass(frozen=True)
class Block:
    """One block of a backbone.

    Attributes:
        name: names it among the cuts.
        channels: that come out.
        make: how to build it.
        splits: whether it has width groups.
        like: how to build a block of its kind of other sizes, for heads that copy later blocks; None where there is
            no such thing (a linear layer).
    """

    name: str
    channels: int
    make: MakeBlock
    splits: bool = True
    like: MakeLike | None = None


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
        name: as the user wrote it, ``resnet32x2``.
        family: without the width factor, ``resnet32``; names the table of cuts.
        blocks: in order; the last one's features are what a classifier sees.
        widen: factor on the hidden units of auxiliary heads (w0 / 16 of a CIFAR ResNet).
    """

    name: str
    family: str
    blocks: tuple[Block, ...]
    widen: float


@dataclass(frozen=True)
class Place:
    """Where in its backbone a module ends.

    Attributes:
        blocks: all blocks of the backbone, in order.
        shapes: features of one image after each, (C, H, W) or (C,).
        block: index of the module's last block.
        module: k, counted from 1.
        modules: K.
        first: index of the module's first block.
        before: index of the first block of the module before it.
    """

    blocks: tuple[Block, ...]
    shapes: tuple[tuple[int, ...], ...]
    block: int
    module: int
    modules: int
    first: int = 0
    before: int = 0

    def layers(self) -> list[int]:
        """Indices of the blocks that a head may copy: those that give maps and are of a kind that has other sizes.

        The module's own last block is always among them.
        """
        found = [i for i, block in enumerate(self.blocks) if block.like is not None and len(self.shapes[i]) == 3]
        return sorted({*found, self.block})


@checked_fields
@dataclass(frozen=True)
class BackboneInput:
    """What a backbone is built for: its name, channels and size of the image, width factor, dropout.

    The size is the side of a square image, or (height, width) [pixels].

    ``patch_size`` [pixels] is the user's choice of patches; None leaves it to the backbone.
    """

    name: str
    channels: int
    image_size: ImageSize
    factor: float = 1
    dropout: float = 0.0
    patch_size: int | None = None


backbones: Registry[Callable[[BackboneInput], tuple[tuple[Block, ...], float]]] = Registry(
    "model", "given: BackboneInput", tuple
)
"""Builders of a backbone's blocks and its factor on the hidden units of heads, by name."""


def check_model(name: str) -> tuple[str, float]:
    """The registered name and the width factor in a model's name; builds nothing and needs no torch.

    Raises:
        ConfigError: nothing is registered under this name.
    """
    match = re.fullmatch(r"(.+?)x([1-9]\d?|0\.\d{1,3})", name)
    family, factor = (match[1], float(match[2])) if match and name not in backbones else (name, 1)
    if family not in backbones:
        backbones.get(name)  # raises, and quotes what the user wrote
    return family, factor


def build_backbone(
    name: str, channels: int, image_size: ImageSize, dropout: float = 0.0, patch_size: int | None = None
) -> Backbone:
    """Build the backbone ``name``, a registered one with an optional width factor (``resnet32x2``).

    Args:
        name: registered name, optionally followed by ``x`` and a factor on every width: a whole number, or one below
            1 (``resnet18x0.25``).
        channels: channels of the image.
        image_size: side of the image, or its height and width [pixels].
        dropout: dropout after every block, where the backbone has it (VGG).
        patch_size: side of the patches of a vision transformer [pixels]; by default the model's own.

    Raises:
        ConfigError: unknown name, images too small for it, or patches that do not divide them.
    """
    family, factor = check_model(name)
    blocks, widen = backbones.build(family, BackboneInput(name, channels, image_size, factor, dropout, patch_size))
    return Backbone(name, family, blocks, widen)


def made_block(kind: str, *args: Any, groups: int, dense: bool) -> nn.Module:
    """A block of the class of that name in ``locallearn.nn.blocks``."""
    return getattr(importlib.import_module("locallearn.nn.blocks"), kind)(*args, groups=groups, dense=dense)


def _block(kind: str, *args: Any) -> MakeBlock:
    return partial(made_block, kind, *args)


def _stage(kind: str, stage: int, inputs: int, outputs: int, n: int, stride: int) -> list[Block]:
    return [
        Block(
            f"{stage}.{i}",
            outputs,
            _block(kind, outputs if i else inputs, outputs, 1 if i else stride),
            like=partial(_strided, kind),
        )
        for i in range(n)
    ]


def _strided(kind: str, inputs: int, outputs: int, halve: bool) -> MakeBlock:
    return _block(kind, inputs, outputs, 2 if halve else 1)


def _pooled(dropout: float, inputs: int, outputs: int, halve: bool) -> MakeBlock:
    return _block("ConvBlock", inputs, outputs, 1, halve, dropout)


def _scaled(given: BackboneInput, width: int) -> int:
    """A width of the plan times the width factor.

    Raises:
        ConfigError: that is not a whole number.
    """
    scaled = width * given.factor
    if scaled < 1 or scaled != int(scaled):
        raise ConfigError(
            "model", given.name, f"a width factor that makes whole numbers of all widths ({width} here)"
        )
    return int(scaled)


def _no_patches(given: BackboneInput) -> None:
    if given.patch_size is not None:
        expected = f"nothing with {given.name}, for vision transformers alone have patches"
        raise ConfigError("patch_size", given.patch_size, expected)


def _resnet(
    given: BackboneInput,
    kind: str,
    stem: int,
    widths: Sequence[int],
    counts: Sequence[int],
) -> tuple[tuple[Block, ...], float]:
    _no_patches(given)
    f = given.factor
    width = _scaled(given, stem)
    blocks = [Block("stem", width, _block("ConvBlock", given.channels, width), like=partial(_strided, "ConvBlock"))]
    for stage, (width, n) in enumerate(zip(widths, counts, strict=True), start=1):
        blocks += _stage(kind, stage, blocks[-1].channels, _scaled(given, width), n, 1 if stage == 1 else 2)
    return tuple(blocks), stem * f / 16


def _vgg(given: BackboneInput, plan: str, hidden: int) -> tuple[tuple[Block, ...], float]:
    """``plan`` lists convolution widths and M for a 2x2 max pool, which belongs to the block after it."""
    _no_patches(given)
    blocks: list[Block] = []
    (rows, columns), channels, pool, n_convs = sides(given.image_size), given.channels, False, 0
    for item in plan.split():
        if item == "M":
            pool, rows, columns = True, rows // 2, columns // 2
            if min(rows, columns) == 0:
                least = min(sides(given.image_size))
                raise ConfigError("model", given.name, f"a model that pools less, on {least}-pixel images")
            continue
        width, n_convs = _scaled(given, int(item)), n_convs + 1
        make = _block("ConvBlock", channels, width, 1, pool, given.dropout)
        blocks.append(Block(f"conv{n_convs}", width, make, like=partial(_pooled, given.dropout)))
        channels, pool = width, False
    hidden = _scaled(given, hidden)
    inputs = channels * rows * columns
    blocks.append(Block("fc1", hidden, _block("LinearBlock", inputs, hidden, pool, given.dropout)))
    return tuple(blocks), float(given.factor)


def _vit(given: BackboneInput, width: int, depth: int, patch: int) -> tuple[tuple[Block, ...], float]:
    """``depth`` transformer blocks of ``width`` channels on patches of ``patch`` pixels a side."""
    patch, width = given.patch_size or patch, _scaled(given, width)
    for side in sides(given.image_size):
        if side % patch:
            raise ConfigError("patch_size", patch, f"a divisor of {side}, the side of the images [pixels]")
    stem = _whole("PatchEmbedding", given.channels, given.image_size, patch, width)
    blocks = [Block("stem", width, stem, splits=False)]
    for i in range(1, depth + 1):
        make = _whole("TransformerBlock", width, i == depth)
        blocks.append(Block(f"block{i}", width, make, splits=False, like=partial(_same, make)))
    return tuple(blocks), float(given.factor)


def _same(make: MakeBlock, inputs: int, outputs: int, halve: bool) -> MakeBlock:
    """A block whose sizes never change."""
    return make


def _whole(kind: str, *args: Any) -> MakeBlock:
    """Builds a block of the class of that name in ``locallearn.nn.vit``, which has no groups."""

    def make(*, groups: int, dense: bool) -> nn.Module:
        return getattr(importlib.import_module("locallearn.nn.vit"), kind)(*args)

    return make


for _depth in (8, 20, 32, 44, 56, 110):
    backbones.add(
        f"resnet{_depth}",
        partial(_resnet, kind="BasicBlock", stem=16, widths=(16, 32, 64), counts=((_depth - 2) // 6,) * 3),
    )
backbones.add("resnet18", partial(_resnet, kind="BasicBlock", stem=64, widths=(64, 128, 256, 512), counts=(2,) * 4))
backbones.add(
    "resnet50", partial(_resnet, kind="Bottleneck", stem=64, widths=(256, 512, 1024, 2048), counts=(3, 4, 6, 3))
)
backbones.add("tiny-resnet", partial(_resnet, kind="BasicBlock", stem=8, widths=(8, 16), counts=(2, 1)))
for _name, _plan, _hidden in (
    ("tiny-vgg", "8 M 16 M 16", 32),
    ("vgg6a", "128 M 256 M 512 M 512", 1024),
    ("vgg8b", "128 256 M 256 512 M 512 M 512 M", 1024),
    ("vgg11b", "128 128 128 256 M 256 512 M 512 512 M 512 M", 1024),
    ("vgg16a", "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512", 1024),
    ("vgg19a", "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512", 1024),
):
    backbones.add(_name, partial(_vgg, plan=_plan, hidden=_hidden))
backbones.add("vit-tiny", partial(_vit, width=192, depth=12, patch=4))
backbones.add("vit-nano", partial(_vit, width=64, depth=4, patch=2))
