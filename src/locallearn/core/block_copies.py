"""Heads of users' own models that are made of copies of the model's later blocks: AugLocal's and MAN's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from locallearn.errors import ConfigError
from locallearn.nn.auglocal import depth_of, sampled
from locallearn.nn.copies import copied, without_data
from locallearn.nn.features import Axes, features_of, seen_by_objective
from locallearn.nn.heads import HeadInput, build_head, heads
from locallearn.nn.init import initialise
from locallearn.nn.momentum import MomentumHead, MomentumOptions
from locallearn.nn.pieces import Piece, chain, end_of
from locallearn.nn.trace import Call, Trace

COPYING = ("auglocal", "momentum")
"""Heads that copy blocks."""


class FeaturesOf(nn.Module):
    """A block of a user's model, of whose output the features are taken."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W], [B, T, C] or [B, C]."""
        features = features_of(self.block(x))
        assert features is not None
        return features


@dataclass(frozen=True)
class Later:
    """A block after a cut.

    Attributes:
        path: of the submodule.
        given: shape of what it is given, for the example.
        made: shape of what it gives.
    """

    path: str
    given: tuple[int, ...]
    made: tuple[int, ...]


def blocks_after(found: Trace, part: Piece) -> tuple[list[Later], int]:
    """The blocks after a stage's end, each between two places where the model could be cut; and how many are before.

    Of submodules between two such places the one that multiplies most is the block, and of those the outermost.
    """
    cut = end_of(found, part)
    places = chain(found, sums=part.summed)
    later, at, given = [], cut.end, tuple(cut.shape or ())
    for place in places:
        if place.end <= cut.end:
            continue
        inside = [call for call in found.calls if call.path and call.start >= at and call.end <= place.end]
        if inside:
            block = max(inside, key=lambda call: (_multiplies(found, call), call.end - call.start))
            later.append(Later(block.path, given, tuple(block.shape or ())))
        at, given = place.end, tuple(place.shape or ())
    return later, sum(place.end <= cut.end for place in places)


def _multiplies(found: Trace, call: Call) -> int:
    before = [other.macs for other in found.calls if other.end <= call.start]
    return call.macs - max(before, default=0)


def maker(
    name: str, options: object, model: nn.Module, found: Trace, parts: Sequence[Piece], k: int, seed: int
) -> Callable[[HeadInput], nn.Module]:
    """Makes the head of stage k = 1 .. K - 1 from copies of the model's blocks.

    Args:
        name: of the head, one of ``COPYING``.
        options: settings of the head's own.
        model: the network's copy of the user's model.
        found: a forward pass of it.
        parts: all stages.
        k: the stage.
        seed: of initial weights.

    Raises:
        ConfigError: features or blocks of another form than such heads take.
    """
    part = parts[k - 1]
    if part.layout != Axes(0, {2: 2, 3: 1}.get(len(part.shape), part.layout.channels)):
        raise ConfigError("head", name, "another head for features that are not [B, C, H, W], [B, T, C] or [B, C]")
    settings = heads.options(name, options, "settings.head_options")
    later, before = blocks_after(found, part)
    copies = _Copies(name, model, seed, k)
    if isinstance(settings, MomentumOptions):
        return lambda given: copies.momentum(settings, later[0] if later else None, given)
    chosen = sampled(before - 1, before + len(later), depth_of(k, len(parts), settings.layers, settings.slope))
    return lambda given: copies.auglocal([later[i - before] for i in chosen], part.shape, given)


@dataclass(frozen=True)
class _Copies:
    """Builds heads of copies of a model's blocks."""

    name: str
    model: nn.Module
    seed: int
    k: int

    def momentum(self, options: MomentumOptions, block: Later | None, given: HeadInput) -> nn.Module:
        if block is None:
            return self._scored(options.of, given.shape, given)
        head = self._scored(options.of, block.made[1:], given)
        made = MomentumHead(fresh(self._copy(block)), self._copy(block), head, options.momentum)
        made.follow(FeaturesOf(self.model.get_submodule(block.path)))
        return made

    def auglocal(self, blocks: Sequence[Later], shape: tuple[int, ...], given: HeadInput) -> nn.Module:
        layers = nn.Sequential()
        for block in blocks:
            if shape != block.given[1:]:
                layers.append(self._fitted(shape, block.given[1:]))
            layers.append(fresh(self._copy(block)))
            shape = block.made[1:]
        layers.append(self._scored("0c1f", shape, given))
        return layers

    def _copy(self, block: Later) -> FeaturesOf:
        """The block alone, if it takes features alone."""
        made = FeaturesOf(copied(self.model.get_submodule(block.path)))
        try:
            out = without_data(made)(torch.empty(block.given, device="meta")).shape
        except Exception as error:
            expected = f"another head: {block.path} takes more than features ({type(error).__name__})"
            raise ConfigError("head", self.name, expected) from error
        if tuple(out)[1:] != block.made[1:]:
            raise ConfigError("head", self.name, f"another head: {block.path} alone gives features of another shape")
        return made

    def _fitted(self, shape: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
        """Brings features to the channels and the size that a copied block takes."""
        if len(shape) != len(wanted) or (len(shape) == 2 and shape[0] != wanted[0]):
            expected = f"another head: the blocks sampled take {wanted}, and not {shape}"
            raise ConfigError("head", self.name, expected)
        if len(shape) < 3:
            return nn.Linear(list(shape)[-1], list(wanted)[-1])
        stride = max(1, shape[1] // wanted[1]), max(1, shape[2] // wanted[2])
        layers = [nn.Conv2d(shape[0], wanted[0], 1, stride, bias=False), nn.BatchNorm2d(wanted[0]), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(wanted[1:]))

    def _scored(self, name: str, shape: tuple[int, ...], given: HeadInput) -> nn.Module:
        """The head on what the copies give; of tokens on their mean."""
        tokens = len(shape) == 2
        seen = shape[-1:] if tokens else shape
        head = build_head(name, seen, given.outputs, hidden=given.hidden)
        initialise(head, 1, self.seed, str(self.k), "head")
        return nn.Sequential(TokenMean(), head) if tokens else head


class TokenMean(nn.Module):
    """Mean of tokens [B, T, C] -> [B, C], normalised as heads of tokens see it."""

    def forward(self, x: Tensor) -> Tensor:
        """One vector for every example."""
        return seen_by_objective(x, "mean")


def fresh(module: nn.Module) -> nn.Module:
    """The same module with weights as they are before training, of all layers that know how to draw them."""
    for layer in module.modules():
        for name in ("reset_parameters", "_reset_parameters"):
            draw = getattr(layer, name, None)
            if callable(draw):
                draw()
                break
    return module
