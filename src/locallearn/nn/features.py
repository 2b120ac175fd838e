"""What modules of a user's model give: the features in a tensor, a tuple, a mapping or a dataclass."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from locallearn.errors import ConfigError

TOKENS = ("mean", "class", "all")
"""What an objective sees of B x T x C features: their mean, the first (class) token, or every token."""


def features_of(output: Any) -> Tensor | None:
    """The first floating-point tensor in what a module gave, depth first; None where there is none."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    for item in _items(output):
        found = features_of(item)
        if found is not None:
            return found
    return None


def with_features(output: Any, features: Tensor) -> Any:
    """The same output with :func:`features_of` it replaced; what was given is not changed."""
    if isinstance(output, Tensor):
        return features
    items = _items(output)
    index = next(i for i, item in enumerate(items) if features_of(item) is not None)
    items[index] = with_features(items[index], features)
    return _rebuilt(output, items)


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors in what a module gave, depth first."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for item in _items(output) for tensor in tensors_of(item)]


def map_tensors(output: Any, change: Callable[[Tensor], Tensor], only: int | None = None) -> Any:
    """The same output with its tensors replaced; what was given is not changed.

    Args:
        output: what a module gave.
        change: a tensor's replacement.
        only: replace only this one of the tensors, counted depth first from 0.
    """
    counter = itertools.count()

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value) if only in (None, next(counter)) else value
        items = _items(value)
        if not items:
            return value
        return _rebuilt(value, [changed(item) for item in items])

    return changed(output)


def _rebuilt(output: Any, items: list[Any]) -> Any:
    """A structure of the same kind with other items."""
    if isinstance(output, MutableMapping):
        replaced = copy.copy(output)
        for key, item in zip(list(output), items, strict=True):
            replaced[key] = item
        return replaced
    if isinstance(output, Mapping):
        return type(output)(zip(output, items, strict=True))  # type: ignore[call-arg]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output)]
        return dataclasses.replace(output, **dict(zip(names, items, strict=True)))
    make: Any = getattr(output, "_make", type(output))  # of a named tuple, or the type of a plain one
    return make(items)


def _items(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [getattr(output, field.name) for field in dataclasses.fields(output)]
    return []


def prediction(output: Any) -> Tensor | None:
    """The scores in what a whole model gave: its ``logits`` where it has them, else its first tensor."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else features_of(output)


def own_loss(output: Any) -> Tensor | None:
    """The loss that a model computed itself, as Hugging Face's do where they are given labels."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return loss if isinstance(loss, Tensor) else None


def seen_by_objective(features: Tensor, tokens: str) -> Tensor:
    """What an objective sees of features: maps and vectors as they are, tokens as ``tokens`` says.

    A chosen token is normalised (layer norm without weights), because blocks of transformers that normalise their
    input give features whose scale grows from block to block.

    Shapes: [B, C, H, W] or [B, C] unchanged; [B, T, C] to [B, C], or unchanged with ``tokens="all"``.
    """
    if features.dim() != 3 or tokens == "all":
        return features
    token_BC = features.mean(1) if tokens == "mean" else features[:, 0]
    return F.layer_norm(token_BC, token_BC.shape[-1:])


def check_tokens(tokens: str) -> None:
    """Refuse an unknown choice of tokens."""
    if tokens not in TOKENS:
        raise ConfigError("tokens", tokens, "one of " + ", ".join(TOKENS))
