"""One step of a copy of a split network, so that what does not fit is said before anything is trained."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_map_only

from locallearn.errors import UsageError
from locallearn.losses.user import checking
from locallearn.nn.copies import copied, untouched, without_data
from locallearn.nn.cut_places import uneven
from locallearn.nn.pieces import Piece
from locallearn.nn.trace import Trace


class SplitWarning(UserWarning):
    """A split model trains, but perhaps not as its user thinks."""


def rehearse(parts: nn.ModuleList, build: Callable[[Any], Any], example: Any) -> bool:
    """Train a copy on the example, on the meta device where that can be, and throw it away.

    Args:
        parts: the model and its objectives, which are not touched.
        build: makes a network of copies of them.
        example: a batch.

    Returns:
        Whether hooks may see the tensors that autograd keeps, by which a step's memory is weighed; ``torch.func``
        takes gradients without such hooks alone.

    Raises:
        UsageError: the losses do not take the example.
    """
    for make, device in ((without_data, "meta"), (copied, None)):
        try:
            return _tried(partial(make, parts), parts, build, partial(_there, example, device))
        except UsageError as error:
            if device is None or "objective:" in str(error):
                raise
        except Exception as error:
            if device is None:
                said = str(error).strip().split("\n")[0]
                raise UsageError(f"example: a step on it fails: {type(error).__name__}: {said}") from error
    raise AssertionError


def _tried(
    make: Callable[[], Any], parts: nn.ModuleList, build: Callable[[Any], Any], batch: Callable[[], Any]
) -> bool:
    """Train a copy, and tell whether hooks may see what autograd keeps."""
    for hooks in (saved_tensors_hooks(_same, _same), contextlib.nullcontext()):
        twin = make()
        try:
            with untouched(parts), checking(), warnings.catch_warnings(), hooks:
                warnings.simplefilter("ignore")
                build(twin).step(batch())
            return isinstance(hooks, saved_tensors_hooks)
        except Exception as error:
            if "saved tensor hooks" not in str(error) or not isinstance(hooks, saved_tensors_hooks):
                raise
    raise AssertionError


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _there(example: Any, device: str | None) -> Any:
    """Tensors of their own, on another device where one is named."""
    return tree_map_only(torch.Tensor, lambda x: x.detach().to(device) if device else x.clone(), example)


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
        of_first = len(found.calls[-1].outputs) > 1 and not used
        scores = "; the model's scores are its logits, or else its first tensor" * of_first
        _say(f"nothing trains {names}: the losses do not depend on them{scores}")
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
