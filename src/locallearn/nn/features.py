"""What modules of a user's model give: the features in a tensor, a tuple, a mapping or a dataclass."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
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
    """The same output with ``features_of`` it replaced; what was given is not changed."""
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
    """The scores in what a whole model gave: its ``logits``, else its first tensor that is not one number.

    Of a model that answers with spans, ``start_logits`` and ``end_logits`` [B, T] are scores [B, T, 2].
    """
    logits, *spans = (_named(output, name) for name in ("logits", "start_logits", "end_logits"))
    if isinstance(logits, Tensor):
        return logits
    if all(isinstance(x, Tensor) and x.dim() == 2 for x in spans):
        return torch.stack(spans, -1)
    return next((x for x in tensors_of(output) if x.dim() and x.is_floating_point()), None)


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def own_loss(output: Any) -> Tensor | None:
    """The loss that a model computed itself: its ``loss``, or one number that it gives first or alone."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, (tuple, list)) and output and not hasattr(output, "loss"):
        loss = output[0]
    else:
        loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        return None
    return loss if loss.dim() == 0 or not isinstance(output, (Tensor, tuple, list)) else None


@dataclasses.dataclass(frozen=True)
class Axes:
    """Where examples and channels are in features; every other axis is a position.

    Attributes:
        batch: axis of the examples.
        channels: axis of the channels; None where only one axis is left.
    """

    batch: int = 0
    channels: int | None = None

    def ordered(self, features: Tensor) -> Tensor:
        """The same features as objectives take them.

        Shapes: B and C alone to [B, C]; channels last of three axes to [B, T, C]; everything else to maps
        [B, C, H, W], where one axis of positions is W, and of three (D, H, W) the first two are joined.
        """
        order = self._order(features.dim())
        moved = features.permute(order) if order != tuple(range(features.dim())) else features
        if moved.dim() < 3 or self._tokens(moved.dim()):
            return moved
        if moved.dim() == 3:
            return moved[:, :, None]
        return moved.flatten(2, -2) if moved.dim() > 4 else moved

    def restored(self, ordered: Tensor, like: Tensor) -> Tensor:
        """Undo ``ordered``: the same features with the axes of ``like``."""
        order = self._order(like.dim())
        back = sorted(range(like.dim()), key=order.__getitem__)
        return ordered.reshape([like.shape[axis] for axis in order]).permute(back)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one example of ``ordered`` features."""
        return tuple(self.ordered(torch.empty(tuple(shape), device="meta")).shape[1:])

    def _tokens(self, dims: int) -> bool:
        return dims == 3 and self.channels == 2

    def _order(self, dims: int) -> tuple[int, ...]:
        """Batch, channels, positions; or batch, tokens, channels."""
        channels = 1 - self.batch if dims == 2 else self.channels
        if channels is None or dims < 2:
            return tuple(range(dims))
        positions = [axis for axis in range(dims) if axis not in (self.batch, channels)]
        return (self.batch, *positions, channels) if self._tokens(dims) else (self.batch, channels, *positions)


def named_layout(letters: str) -> Axes:
    """The layout that letters say, one an axis: B and C are examples and channels, any others positions.

    Raises:
        ConfigError: there is not exactly one B and one C.
    """
    if not isinstance(letters, str) or letters.count("B") != 1 or letters.count("C") != 1:
        raise ConfigError("layout", letters, "one letter an axis with one B and one C, like BCHW, BHWC, BTC or TBC")
    return Axes(letters.index("B"), letters.index("C"))


def seen_by_objective(features: Tensor, tokens: str, mask: Tensor | None = None) -> Tensor:
    """What an objective sees of ordered features: maps and vectors as they are, tokens as ``tokens`` says.

    A chosen token is normalised (layer norm without weights), because blocks of transformers that normalise their
    input give features whose scale grows from block to block.

    Args:
        features: [B, C, H, W], [B, C] or [B, T, C].
        tokens: ``mean``, ``class`` or ``all``.
        mask: [B, T], true where a token counts towards the mean; None where all do.

    Shapes: [B, C, H, W] or [B, C] unchanged; [B, T, C] to [B, C], or unchanged with ``tokens="all"``.
    """
    if features.dim() != 3 or tokens == "all":
        return features
    if tokens == "class":
        token_BC = features[:, 0]
    elif mask is None:
        token_BC = features.mean(1)
    else:
        weights_BT1 = mask[..., None].to(features.dtype)
        token_BC = (features * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)
    return F.layer_norm(token_BC, token_BC.shape[-1:])


def check_tokens(tokens: str) -> None:
    """Refuse an unknown choice of tokens."""
    if tokens not in TOKENS:
        raise ConfigError("tokens", tokens, "one of " + ", ".join(TOKENS))
