"""Which features belong to tokens that a model's mask hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from locallearn.nn.trace import Call, Trace
from locallearn.nn.variants import shapes_of

MASKS = ("attention_mask", "padding_mask", "key_padding_mask", "src_key_padding_mask")
"""Arguments that say which tokens are padding: 0 in the first; in the others true, as torch's attention has it."""

FEW = 4
"""So many features more than tokens are class tokens, which stand before them."""


def fitted_mask(kept: Tensor | None, tokens: int, place: str = "") -> Tensor | None:
    """A mask [B, T] of input tokens for features of another length.

    Args:
        kept: the mask, true where a token counts.
        tokens: how many features there are.
        place: as ``find_places`` found it.
    """
    if kept is None or kept.shape[1] == tokens:
        return kept
    if place == "none":
        return None
    more = tokens - kept.shape[1]
    if more > 0 and (place in ("first", "last") or (not place and more <= FEW)):
        return F.pad(kept, (0, more) if place == "first" else (more, 0), value=True)
    return F.interpolate(kept[:, None].float(), tokens, mode="nearest")[:, 0] > 0


def find_places(found: Trace, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Note where the tokens of the model's mask are in features that are not as many, from a batch of half as many.

    ``none``: they do not follow the tokens (latents of a Perceiver, another input's). ``last``: others stand before
    them (class tokens, prompts). ``first``: others stand after them (patches of an image). ``stretched``: each is
    of some tokens in a row.
    """
    masks = [x for name, x in kwargs.items() if name in MASKS and isinstance(x, Tensor) and x.dim() == 2]
    tokens = masks[0].shape[1] if masks else 0
    if tokens < 2 or all(_features(call) in (None, tokens) for call in found.calls):
        return

    def halved(x: Tensor) -> Tensor:
        return x[:, : tokens // 2].contiguous() if x.dim() > 1 and x.shape[1] == tokens else x

    shapes = shapes_of(found, model, *tree_map_only(Tensor, halved, (args, dict(kwargs))))
    images = any(isinstance(x, Tensor) and x.dim() == 4 for x in (*args, *kwargs.values()))
    for call, shape in zip(found.calls, shapes or (), strict=False):
        count, left = _features(call), _features(call, shape)
        if count is None or left is None or count == tokens:
            continue
        if left == count:
            call.mask_place = "none"
        elif count - left == tokens - tokens // 2:
            call.mask_place = "first" if images and count - tokens > FEW else "last"
        else:
            call.mask_place = "stretched"


def _features(call: Call, shape: tuple[int, ...] | None = None) -> int | None:
    """How many features of an example a call gives, where they are [B, T, C] in some order."""
    shape = shape or call.shape
    if shape is None or len(shape) != 3 or call.batch is None or call.channels in (None, call.batch):
        return None
    return shape[3 - call.batch - call.channels]
