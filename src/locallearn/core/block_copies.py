"""Heads of users' own models that are made of copies of the model's later blocks: AugLocal's and MAN's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from locallearn.config import ObjectiveConfig
from locallearn.core.batches import ModelCall
from locallearn.core.block_arguments import CopiedBlock
from locallearn.core.grouped_copies import Grouping
from locallearn.core.recorded_blocks import RecordedBlocks
from locallearn.core.split_context import AfterCut
from locallearn.core.tasks import Task
from locallearn.errors import ConfigError
from locallearn.nn.auglocal import depth_of, sampled
from locallearn.nn.copies import copied
from locallearn.nn.cut_places import chain
from locallearn.nn.features import Axes, seen_by_objective
from locallearn.nn.heads import HeadInput, build_head, heads
from locallearn.nn.init import initialise
from locallearn.nn.momentum import MomentumHead, MomentumOptions
from locallearn.nn.pieces import Piece, end_of
from locallearn.nn.score_heads import MapHead
from locallearn.nn.token_heads import Readout, SharedHead, TokenHead
from locallearn.nn.trace import Call, Trace

COPYING = ("auglocal", "momentum")
"""Heads that copy blocks."""


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


def blocks_after(found: Trace, part: Piece, adapters: Sequence[str] = ()) -> tuple[list[Later], int]:
    """The blocks after a stage's end, each between two places where the model could be cut; and how many are before.

    Of submodules between two such places the one that multiplies most is the block, and of those the outermost. Where
    nothing multiplies, as between a block and the layer norm after it, or only an adapter of context, there is none.
    """
    cut = end_of(found, part)
    calls = [call for call in found.calls if call.path and not f"{call.path}.".startswith(tuple(adapters))]
    later, before, at, given = list[Later](), 0, 0.0, ()
    for place in chain(found, sums=part.summed):
        inside = [call for call in calls if call.start >= at and call.end <= place.end]
        block = max(inside, key=lambda call: (_multiplies(found, call), call.end - call.start), default=None)
        if block is not None and _multiplies(found, block):
            if place.end > cut.end:
                later.append(Later(block.path, given, tuple(block.shape or ())))
            else:
                before += 1
        at, given = place.end, tuple(place.shape or ())
    return later, before


def _multiplies(found: Trace, call: Call) -> int:
    before = [other.macs for other in found.calls if other.end <= call.start]
    return call.macs - max(before, default=0)


class BlockCopies:
    """Makes heads of copies of a model's blocks.

    A copy is called as its block is: with the features, and with what that is given beside them in the same pass.

    Args:
        config: names the heads, one of ``COPYING``, with settings of their own.
        model: the network's copy of the user's model, in which other stages' blocks are followed.
        plain: the user's model without groups, whose blocks are copied.
        found: a forward pass of it.
        parts: all stages.
        call: the example.
        task: what is learnt.
        seed: of initial weights.
        groups: G of every stage but the last.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        model: nn.Module,
        plain: nn.Module,
        found: Trace,
        parts: Sequence[Piece],
        call: ModelCall,
        task: Task,
        seed: int,
        groups: int = 1,
    ) -> None:
        self.name, self.model, self.plain = config.head, model, plain
        self.found, self.parts, self.task, self.seed = found, parts, task, seed
        self.settings: Any = heads.options(config.head, config.head_options, "settings.head_options")
        self.grouping = None
        if groups > 1:
            self.grouping = Grouping(config.head, groups, config.stop_gradient, config.pool_others)
        self.chosen = [self._chosen(k) for k in range(1, len(parts))]
        wanted = {block.path for blocks in self.chosen for block in blocks}
        self.recorded = RecordedBlocks(model, call, wanted) if wanted else None

    def _chosen(self, k: int) -> list[Later]:
        """The blocks that the head of stage k = 1 .. K - 1 has copies of."""
        part = self.parts[k - 1]
        if part.layout != Axes(0, {2: 2, 3: 1}.get(len(part.shape), part.layout.channels)):
            expected = "another head for features that are not [B, C, H, W], [B, T, C] or [B, C]"
            raise ConfigError("head", self.name, expected)
        adapters = [f"{path}.adapter." for path, each in self.model.named_modules() if isinstance(each, AfterCut)]
        later, before = blocks_after(self.found, part, adapters)
        if isinstance(self.settings, MomentumOptions):
            return [block for block in later if block.given[1:] == part.shape][:1]
        depth = depth_of(k, len(self.parts), self.settings.layers, self.settings.slope)
        return [later[i - before] for i in sampled(before - 1, before + len(later), depth)]

    def maker(self, k: int) -> Callable[[HeadInput], nn.Module]:
        """Makes the head of stage k = 1 .. K - 1.

        Raises:
            ConfigError: blocks of another form than such heads take.
        """
        return self._momentum(k) if isinstance(self.settings, MomentumOptions) else self._auglocal(k)

    def _momentum(self, k: int) -> Callable[[HeadInput], nn.Module]:
        options, blocks = self.settings, self.chosen[k - 1]

        def make(given: HeadInput) -> nn.Module:
            if not blocks:
                return self._scored(options.of, given.shape, k, given)
            head = self._scored(options.of, blocks[0].made[1:], k, given)
            made = MomentumHead(fresh(self._copy(blocks[0], k)), self._copy(blocks[0], k), head, options.momentum)
            made.follow(CopiedBlock(self.model.get_submodule(blocks[0].path)))
            return made

        return make

    def _auglocal(self, k: int) -> Callable[[HeadInput], nn.Module]:
        def make(given: HeadInput) -> nn.Module:
            layers, shape = BehindCopies(), self.parts[k - 1].shape
            for block in self.chosen[k - 1]:
                if shape != block.given[1:]:
                    layers.append(self._fitted(shape, block.given[1:], first=not len(layers)))
                layers.append(fresh(self._copy(block, k, first=not len(layers))))
                shape = block.made[1:]
            layers.append(self._scored("0c1f", shape, k, given))
            if self.grouping is not None:
                self.grouping.check(layers, self.parts[k - 1].shape)
            return layers

        return make

    def _copy(self, block: Later, k: int, first: bool = True) -> CopiedBlock:
        assert self.recorded is not None
        before = self.parts[k - 2].path if k > 1 else ""
        arguments = self.recorded.arguments(block.path, block.given, before, self.parts[k - 1].path)
        if arguments is None:
            expected = f"another head: {block.path} takes more than features and what stage {k} has at hand"
            raise ConfigError("head", self.name, expected)
        if self.grouping is not None:
            return CopiedBlock(self.grouping.of_block(self.plain, self.found, block.path, first), arguments)
        return CopiedBlock(copied(self.plain.get_submodule(block.path)), arguments)

    def _fitted(self, shape: tuple[int, ...], wanted: tuple[int, ...], first: bool) -> nn.Module:
        """Brings features to the channels and the size that a copied block takes."""
        if len(shape) != len(wanted) or (len(shape) == 2 and shape[0] != wanted[0]):
            expected = f"another head: the blocks sampled take {wanted}, and not {shape}"
            raise ConfigError("head", self.name, expected)
        if len(shape) < 3:
            return nn.Linear(list(shape)[-1], list(wanted)[-1])
        stride = max(1, shape[1] // wanted[1]), max(1, shape[2] // wanted[2])
        if self.grouping is not None and stride[0] != stride[1]:
            stride = 1, 1
        conv: nn.Module = nn.Conv2d(shape[0], wanted[0], 1, stride, bias=False)
        if self.grouping is not None:
            conv = self.grouping.of_convolution(conv, "what brings features to a block", first)  # type: ignore[arg-type]
        return nn.Sequential(conv, nn.BatchNorm2d(wanted[0]), nn.ReLU(), nn.AdaptiveAvgPool2d(wanted[1:]))

    def _scored(self, name: str, shape: tuple[int, ...], k: int, given: HeadInput) -> nn.Module:
        """The head on what the copies give, whose scores have the form of the model's own; initialised."""
        head = self._head(name, shape, self.task.form(self.parts[k - 1].shape), given)
        initialise(head, given.groups, self.seed, str(k), "head")
        return head

    def _head(self, name: str, shape: tuple[int, ...], form: str, given: HeadInput) -> nn.Module:
        tokens = len(shape) == 2
        if self.task.name in ("token", "next-token") or (not self.task.name and form in ("tokens", "flat")):
            if not tokens:
                expected = f"another head: the last block that it copies gives {shape}, and no tokens"
                raise ConfigError("head", self.name, expected)
            scorer = self.model.get_submodule(self.found.scorer) if self.found.scorer else None
            if name == "shared" and isinstance(scorer, nn.Linear) and scorer.in_features == shape[1]:
                return SharedHead(shape[1], scorer)
            return TokenHead(name, shape[1], given.outputs, given.hidden)
        if not self.task.name and form == "maps":
            if given.groups > 1:
                raise ConfigError("width", given.groups, f"1 with head {self.name} where every position is scored")
            return MapHead(name, shape, given.outputs, self.task.size, given.hidden)
        seen = shape[-1:] if tokens else shape
        head = build_head(name, seen, given.outputs, groups=given.groups, hidden=given.hidden)
        return nn.Sequential(TokenMean(), head) if tokens else head


class BehindCopies(nn.Sequential):
    """Copied blocks, and a head on what they give."""

    def readout(self, x: Tensor) -> Readout:
        """What the head's last linear layer is given of tokens, and the layer."""
        *copies, head = self
        for layer in copies:
            x = layer(x)
        return head.readout(x)  # type: ignore[operator]


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
