"""What a stage of a user's model is given, in the form of its features, for objectives that rebuild it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from locallearn.nn.features import Axes
from locallearn.nn.pieces import Piece
from locallearn.nn.trace import Trace


def given_to(parts: Sequence[Piece], k: int, first: Tensor, found: Trace) -> tuple[tuple[int, ...], str]:
    """Features of one example that stage k = 1 .. K is given, and the submodule that gives them in the first stage.

    The first stage is given the batch. Where that is not of the form of its features, as ids of tokens are not, or
    images that become tokens, it is the first features in the stage that are: maps, vectors, or as many tokens.

    Args:
        parts: all stages.
        k: the stage.
        first: the first of the model's inputs.
        found: a forward pass of the model.

    Returns:
        The shape, (C, H, W), (T, C) or (C,), empty where there is none; and the submodule, empty for the batch.
    """
    if k > 1:
        return parts[k - 2].shape, ""
    shape = parts[0].shape
    if first.is_floating_point() and first.dim() == len(shape) + 1 and len(shape) != 2:
        return tuple(first.shape[1:]), ""
    end = next(call.end for call in found.calls if call.path == parts[0].path)
    for call in found.calls:
        layout = Axes(call.batch or 0, call.channels)
        if call.shape is None or call.end > end or call.path == parts[0].path or found.times[call.path] > 1:
            continue
        made = layout.shape(call.shape)
        if layout == parts[0].layout and len(made) == len(shape) and (len(made) != 2 or made[0] == shape[0]):
            return made, call.path
    return (), ""
