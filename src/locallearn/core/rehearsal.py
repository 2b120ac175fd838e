"""One step of a copy of a split network, so that what does not fit is said before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from locallearn.errors import UsageError
from locallearn.losses.user import checking
from locallearn.nn.copies import copied, untouched, without_data
from locallearn.nn.cut_places import uneven
from locallearn.nn.pieces import Piece
from locallearn.nn.trace import Trace


class SplitWarning(UserWarning):
    """A split model trains, but perhaps not as its user thinks."""


def rehearse(parts: nn.ModuleList, build: Callable[[Any], Any], example: Any) -> None:
    """Train a copy on the example, on the meta device where that can be, and throw it away.

    Args:
        parts: the model and its objectives, which are not touched.
        build: makes a network of copies of them.
        example: a batch.

    Raises:
        UsageError: the losses do not take the example.
    """
    for make, device in ((without_data, "meta"), (copied, None)):
        twin = make(parts)
        batch = tree_map_only(torch.Tensor, lambda x, to=device: x.detach().to(to) if to else x.clone(), example)
        try:
            with untouched(parts), checking(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                build(twin).step(batch)
            return
        except UsageError as error:
            if device is None or "objective:" in str(error):
                raise
        except Exception as error:
            if device is None:
                said = str(error).strip().split("\n")[0]
                raise UsageError(f"example: a step on it fails: {type(error).__name__}: {said}") from error


def warn(pieces: Sequence[Piece], found: Trace, depth: int, used: frozenset[str] = frozenset()) -> None:
    """Say which parameters nothing trains, and that pieces are not of like cost.

    Args:
        pieces: the stages.
        found: the model's trace.
        depth: K.
        used: names of parameters that the loss depends on by other ways than the model's prediction.
    """
    held = {name for piece in pieces for name in piece.parameters}
    idle = sorted(name for name in found.trainable - found.reached - used if name in held)
    idle += [name for piece in pieces for name in piece.idle]
    if idle:
        names = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
        _say(f"nothing trains {names}: the losses do not depend on them")
    for shape in list(found.unregistered.values())[:1]:
        one = " x ".join(map(str, shape)) or "one number"
        count = f"{len(found.unregistered)} parameters that the model uses and does not register (one is {one})"
        _say(f"nothing trains {count}: layers in a list or dict need nn.ModuleList or nn.ModuleDict")
    costs = [piece.macs for piece in pieces]
    if uneven(costs) and sum(costs):
        shares = ", ".join(f"{100 * cost / sum(costs):.0f} %" for cost in costs)
        _say(f"the {depth} stages have {shares} of the multiply-accumulates; other cuts may serve better")
    for k, piece in enumerate(pieces, 1):
        if piece.lost:
            lost = ", ".join(path or "what its own forward pass computes" for path in piece.lost)
            _say(
                f"the model's own loss uses {lost} of stage {k} beside its prediction "
                "(as losses do that balance experts); no gradient passes a cut, so this part does not train them"
            )


def _say(text: str) -> None:
    warnings.warn(text, SplitWarning, stacklevel=5)
