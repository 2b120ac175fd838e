"""Context in a user's own model (ContSup): adapters behind its cuts, which become parts of the model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor, nn

from locallearn.config.checks import choice
from locallearn.config.run import ContextName
from locallearn.core.batches import ModelCall
from locallearn.core.stage_pass import Receives
from locallearn.errors import ConfigError
from locallearn.nn.context import build_adapter
from locallearn.nn.copies import copied
from locallearn.nn.features import Axes, features_of, with_features
from locallearn.nn.init import initialise
from locallearn.nn.pieces import Piece
from locallearn.seeding import seeded


class Seen:
    """What adapters see of the present forward pass: the model's input, and what stages were given.

    Args:
        layouts: where examples and channels are in them, by the stage that was given them, counted from 0.
    """

    def __init__(self, layouts: Sequence[Axes]) -> None:
        self.layouts = layouts
        self.given: dict[int, Tensor] = {}

    def note_input(self, _model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A hook before the model's forward pass."""
        self.given[0] = input_of(args, kwargs).detach()

    def context(self, number: int) -> Tensor:
        """What a stage was given, as adapters take it."""
        return self.layouts[number].ordered(self.given[number])


class AfterCut(Receives):
    """A submodule at whose end a stage ends, and the adapter of context that the next stage begins with.

    The cut is between both, so that the adapter is the next stage's. Attributes are the submodule's.

    Args:
        block: the submodule.
        adapter: makes features like the submodule's of the context's.
        seen: what there is to see.
        context: 0 is the model's input, k what stage k + 1 was given.
        number: of the stage that it begins, counted from 0.
    """

    def __init__(self, block: nn.Module, adapter: nn.Module, seen: Seen, context: int, number: int) -> None:
        super().__init__()
        self.block, self.adapter = block, adapter
        self.seen, self.context, self.number = seen, context, number
        self.register_forward_hook(_note)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the submodule gives, with what the adapter makes of the context added to its features."""
        output = self.block(*args, **kwargs)
        features = features_of(output)
        assert features is not None
        adapted = self.adapter(self.seen.context(self.context))
        return with_features(output, features + self.seen.layouts[self.number].restored(adapted, features))

    def receive(self, features: Tensor) -> None:
        """Keep the features for the adapters of later stages."""
        self.seen.given[self.number] = features

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def _note(module: nn.Module, _args: Any, output: Any) -> None:
    assert isinstance(module, AfterCut)
    features = features_of(output)
    assert features is not None
    module.receive(features)


def with_context(
    model: nn.Module, kind: str, parts: Sequence[Piece], call: ModelCall, seed: int
) -> tuple[nn.Module, list[str]]:
    """A copy of a model with an adapter behind each cut, and the cuts in it.

    Args:
        model: the model.
        kind: ``image``: the model's input, or ``before``: what the stage before was given.
        parts: its stages.
        call: the example.
        seed: of the adapters' initial weights.

    Raises:
        ConfigError: an input or features without a form that adapters know, or a stage that ends in a sum of the
            model's.
    """
    choice("context", kind, *get_args(ContextName))
    if len(parts) == 1:
        raise ConfigError("context", kind, "none with depth 1: there is no module before")
    check_nested(parts)
    given = input_of(call.args, call.kwargs)
    vocabulary = 0 if given.is_floating_point() else _vocabulary(model, kind, given)
    layouts = [_layout_of(given, parts[0]), *(part.layout for part in parts)]
    model, seen = copied(model), Seen(layouts)
    model.register_forward_pre_hook(seen.note_input, with_kwargs=True)
    shapes = [layouts[0].shape(given.shape), *(part.shape for part in parts)]
    for k, part in enumerate(parts[:-1], 1):
        if part.summed:
            expected = f"none with stage {k}, which ends in a sum of the model's and in no submodule"
            raise ConfigError("context", kind, expected)
        context = 0 if kind == "image" else k - 1
        with seeded(seed, "layers", k + 1, "context"):
            adapter = build_adapter(kind, shapes[context], part.shape, 0 if context else vocabulary)
        initialise(adapter, 1, seed, str(k + 1), "context")
        adapter.to(next(model.parameters()).device)
        parent, _, name = part.path.rpartition(".")
        whole = model.get_submodule(parent)
        whole._modules[name] = AfterCut(model.get_submodule(part.path), adapter, seen, context, k)
    return model, [f"{part.path}.block" for part in parts[:-1]]


def input_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The input that is context: ``input_ids``, or else the first."""
    named = kwargs.get("input_ids")
    return named if isinstance(named, Tensor) else ModelCall(tuple(args), dict(kwargs), None).first


def _layout_of(given: Tensor, first: Piece) -> Axes:
    """Where examples and channels are in the model's input."""
    if not given.is_floating_point():
        return Axes(first.layout.batch if given.dim() > 1 else 0)
    if given.dim() == 3 and len(first.shape) == 2:
        return Axes(first.layout.batch, 2)
    return Axes(0, 1)


def _vocabulary(model: nn.Module, kind: str, ids: Tensor) -> int:
    """How many ids a model's embeddings are for."""
    sizes = [part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)]
    if not sizes or ids.dim() != 2:
        expected = "none for a model whose input is neither numbers nor ids [B, T] of an nn.Embedding"
        raise ConfigError("context", kind, expected)
    return max(sizes)


def check_nested(parts: Sequence[Piece]) -> None:
    """Refuse cuts one inside another's submodule, whose names would change while they are wrapped.

    Raises:
        ConfigError: there are such cuts.
    """
    for one, other in itertools.permutations([part.path for part in parts[:-1]], 2):
        if one.startswith(f"{other}."):
            raise ConfigError("cuts", one, f"a place outside of {other} with context, whose adapter is behind that")
