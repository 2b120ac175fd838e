"""Context in a user's own model (ContSup): adapters behind its cuts, which become parts of the model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor, nn

from locallearn.config.checks import choice
from locallearn.config.run import ContextName
from locallearn.core.stage_pass import Receives
from locallearn.errors import ConfigError
from locallearn.nn.context import build_fusion
from locallearn.nn.copies import copied
from locallearn.nn.features import Axes, features_of, tensors_of, with_features
from locallearn.nn.init import initialise
from locallearn.nn.pieces import Piece


class Seen:
    """What adapters see of the present forward pass: the image, and what stages were given."""

    def __init__(self) -> None:
        self.given: dict[int, Tensor] = {}

    def note_image(self, _model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A hook before the model's forward pass."""
        image = next(x for x in tensors_of([*args, *kwargs.values()]) if x.is_floating_point())
        self.given[0] = image.detach()


class AfterCut(Receives):
    """A submodule at whose end a stage ends, and the adapter of context that the next stage begins with.

    The cut is between both, so that the adapter is the next stage's. Attributes are the submodule's.

    Args:
        block: the submodule.
        adapter: makes maps like the features of the context's.
        seen: what there is to see.
        context: 0 is the image, k what stage k + 1 was given.
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
        return with_features(output, features + self.adapter(self.seen.given[self.context]))

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
    model: nn.Module, kind: str, parts: Sequence[Piece], image: Tensor, seed: int
) -> tuple[nn.Module, list[str]]:
    """A copy of a model with an adapter behind each cut, and the cuts in it.

    Args:
        model: the model.
        kind: ``image``, or ``before``: what the stage before was given.
        parts: its stages.
        image: the first of the example's inputs.
        seed: of the adapters' initial weights.

    Raises:
        ConfigError: inputs or features that are no maps [B, C, H, W], or a stage that ends in a sum of the model's.
    """
    choice("context", kind, *get_args(ContextName))
    if len(parts) == 1:
        raise ConfigError("context", kind, "none with depth 1: there is no module before")
    if image.dim() != 4 or not image.is_floating_point():
        raise ConfigError("context", kind, "none for a model whose inputs are not images [B, C, H, W]")
    check_nested(parts)
    model, seen = copied(model), Seen()
    model.register_forward_pre_hook(seen.note_image, with_kwargs=True)
    shapes = [tuple(image.shape[1:]), *(part.shape for part in parts)]
    for k, part in enumerate(parts[:-1], 1):
        if part.summed or len(part.shape) != 3 or part.layout != Axes(0, 1):
            expected = f"none with stage {k}, which does not end in a submodule's maps [B, C, H, W]"
            raise ConfigError("context", kind, expected)
        context = 0 if kind == "image" else k - 1
        adapter = build_fusion("image" if kind == "image" else "before", shapes[context], part.shape).adapter
        assert adapter is not None
        initialise(adapter, 1, seed, str(k + 1), "context")
        parent, _, name = part.path.rpartition(".")
        whole = model.get_submodule(parent)
        whole._modules[name] = AfterCut(model.get_submodule(part.path), adapter, seen, context, k)
    return model, [f"{part.path}.block" for part in parts[:-1]]


def check_nested(parts: Sequence[Piece]) -> None:
    """Refuse cuts one inside another's submodule, whose names would change while they are wrapped.

    Raises:
        ConfigError: there are such cuts.
    """
    for one, other in itertools.permutations([part.path for part in parts[:-1]], 2):
        if one.startswith(f"{other}."):
            raise ConfigError("cuts", one, f"a place outside of {other} with context, whose adapter is behind that")
