"""What other batches tell of a user's model: which axis is the examples, which tokens are not those it scores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from locallearn.nn.features import features_of, prediction
from locallearn.nn.hooks import removed_after
from locallearn.nn.trace import Trace


def find_batch_axes(found: Trace, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Note the axis of the examples in every output: the one that grows by a row when the batch does."""
    rows, values = batch_size(args, kwargs), (args, dict(kwargs))
    for more in (1, rows):  # it may take batches of an even size only, or of this size only
        shapes = shapes_of(found, model, *_grown(values, rows, more))
        if shapes is not None:
            _note_growth(found, shapes, more)
            break
    else:
        for call in found.calls:
            call.batch = 0 if call.shape and call.shape[0] == rows else None
        return
    if found.calls[-1].batch is None and len(found.scores) == 2:
        _look_further(found, model, values, rows)


def _look_further(found: Trace, model: nn.Module, values: Any, rows: int) -> None:
    """The same where scores [B, C] have no row more for a row more of the first input.

    Its rows may be steps in time, with examples on the second axis; or words of all examples one after the other,
    with where each begins beside them (``EmbeddingBag``).
    """
    count = found.scores[0]
    tries = [] if count == rows else [_grown(values, count, 1)]
    for grown in (*tries, _wider(values, count)):
        shapes = shapes_of(found, model, *grown)
        if shapes is not None and _grew(found.scores, shapes[-1], 1) == 0:
            _note_growth(found, shapes, 1)
            return


def _note_growth(found: Trace, shapes: list[tuple[int, ...] | None], more: int) -> None:
    for call, shape in zip(found.calls, shapes, strict=True):
        call.batch = _grew(call.shape, shape, more)


def find_other_tokens(found: Trace, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Mark outputs whose tokens are not those of the prediction, as an encoder's are not a decoder's.

    Some inputs are made shorter by a token; those outputs do not follow when the prediction does, or follow alone.
    """
    inputs = dict(enumerate(args)) | dict(kwargs)
    sequences = [name for name, x in inputs.items() if isinstance(x, Tensor) and x.dim() > 1 and x.shape[1] > 1]
    decoder = [name for name in sequences if str(name).startswith(("decoder", "labels", "target", "tgt"))]
    for names in ([[name] for name in sequences] + [decoder]) if len(sequences) > 1 else []:
        shorter = {name: x[:, :-1].contiguous() if name in names else x for name, x in inputs.items()}
        positional = tuple(shorter.pop(i) for i in range(len(args)))
        shapes = shapes_of(found, model, positional, {str(name): x for name, x in shorter.items()})
        if shapes is None:
            continue
        followed = shapes[-1] != found.scores
        for call, shape in zip(found.calls, shapes, strict=True):
            call.other_tokens |= (shape != call.shape) is not followed


def batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Examples in a batch: the rows of its first tensor."""
    leaves = tree_flatten((args, {name: value for name, value in kwargs.items() if name != "labels"}))[0]
    return next((len(x) for x in leaves if isinstance(x, Tensor) and x.dim()), 0)


def _grown(values: Any, rows: int, more: int) -> Any:
    """The same arguments with more examples."""

    def grow(x: Tensor) -> Tensor:
        fits = x.layout == torch.strided and x.dim() and len(x) == rows
        return torch.cat([x, x[-more:]]) if fits else x

    return tree_map_only(Tensor, grow, values)


def _wider(values: Any, count: int) -> Any:
    """The same arguments with an example more on the second axis, or on the only one."""

    def grow(x: Tensor) -> Tensor:
        axis = min(1, x.dim() - 1)
        fits = x.layout == torch.strided and x.dim() and x.shape[axis] == count
        return torch.cat([x, x.narrow(axis, -1, 1)], axis) if fits else x

    return tree_map_only(Tensor, grow, values)


@torch.no_grad()
def shapes_of(
    found: Trace, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[int, ...] | None] | None:
    """Shapes of the first outputs of the same calls for another batch; None where it does not run, or runs others."""
    shapes: list[tuple[str, tuple[int, ...] | None]] = []

    def note(path: str) -> Any:
        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            features = features_of(output)
            shapes.append((path, None if features is None else tuple(features.shape)))

        return leave

    hooks = [part.register_forward_hook(note(path)) for path, part in model.named_modules()]
    try:
        with removed_after(hooks), warnings.catch_warnings():  # inputs of other sizes are none of the user's
            warnings.simplefilter("ignore")
            output = model(*args, **kwargs)
    except Exception:
        return None
    scores = prediction(output)
    shapes[-1] = ("", None if scores is None else tuple(scores.shape))
    same = [path for path, _ in shapes] == [call.path for call in found.calls]
    return [shape for _, shape in shapes] if same else None


def _grew(shape: tuple[int, ...] | None, grown: tuple[int, ...] | None, more: int) -> int | None:
    """The axis that has as many rows more as there are examples more, where it is the only one that changed."""
    if shape is None or grown is None or len(shape) != len(grown):
        return None
    changed = [axis for axis, (a, b) in enumerate(zip(shape, grown, strict=True)) if a != b]
    return changed[0] if len(changed) == 1 and grown[changed[0]] - shape[changed[0]] == more else None
