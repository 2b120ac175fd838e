"""Pooled features of one stage of any network, in the form that the stage's head sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from locallearn.core.batches import CalledBatch
from locallearn.core.network import LocalNetwork
from locallearn.core.split_network import ModelStage, SplitNetwork
from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.nn.features import Layout, features_of, fitted_mask, prediction, seen_by_objective
from locallearn.training.features import Reader, places, pooled


def stage_reader(network: LocalNetwork, stage: int | None, precision: str = "fp32") -> Callable[[Batch], Tensor]:
    """What reads the features [B, D] of one stage for a batch of the network's.

    The caller sets eval mode and autocast.

    Args:
        network: the network.
        stage: from 1; None for the last one.
        precision: of the network's computation.

    Raises:
        UsageError: no such stage.
    """
    if not isinstance(network, SplitNetwork):
        where = places(network, "modules")
        reader = Reader(network, [where[_checked(stage, len(where)) - 1]], precision)
        return lambda batch: reader(batch.images)[0]
    chosen = network.model_stages[_checked(stage, network.depth) - 1]
    return lambda batch: _last(network, chosen, batch) if chosen.last else _at_cut(network, chosen, batch)


def _checked(stage: int | None, depth: int) -> int:
    if stage is None:
        return depth
    if not isinstance(stage, int) or isinstance(stage, bool) or not 1 <= stage <= depth:
        raise UsageError(f"stage: {stage!r} is not valid; expected a number from 1 to {depth}")
    return stage


class _ReadError(BaseException):
    """Leaves the model's forward pass where the features are there; no model catches it."""


def _at_cut(network: SplitNetwork, stage: ModelStage, batch: Batch) -> Tensor:
    found: list[Tensor | None] = []

    def read(_module: nn.Module, _args: Any, output: Any) -> None:
        found.append(features_of(output))
        raise _ReadError

    end = network.model.get_submodule(stage.piece.path)
    with _hooked(end.register_forward_hook(read)), contextlib.suppress(_ReadError):
        network.output(batch)
    if not found or found[0] is None:
        raise UsageError(f"stage: {stage.piece.path} did not run on a batch, as it did on the example")
    return _seen(stage.piece.layout.ordered(found[0]), stage.tokens, batch)


def _last(network: SplitNetwork, stage: ModelStage, batch: Batch) -> Tensor:
    """What the linear layer is given whose output the model's scores are."""
    calls: list[tuple[Tensor, Any]] = []

    def note(_module: nn.Module, args: Any, output: Any) -> None:
        calls.append((args[0], output))

    layers = [layer for layer in network.model.modules() if isinstance(layer, nn.Linear)]
    with _hooked(*(layer.register_forward_hook(note) for layer in layers)):
        scores = prediction(network.output(batch))
    given = next((features for features, output in reversed(calls) if output is scores), None)
    if given is None:
        expected = f"1 to {network.depth - 1}: no linear layer makes the model's scores" if network.depth > 1 else ""
        raise UsageError(
            f"stage: {stage.name} is not valid; expected {expected or 'a model whose scores a linear layer makes'}"
        )
    axis = network.task.batch
    if axis is None:  # tokens of all examples, one after the other
        given, axis = given.unflatten(0, (batch.examples, -1)), 0
    return _seen(Layout(axis, given.dim() - 1).ordered(given), stage.tokens, batch)


def _seen(ordered: Tensor, tokens: str, batch: Batch) -> Tensor:
    """One vector an example."""
    call = batch.call if isinstance(batch, CalledBatch) else None
    kept = None if call is None or ordered.dim() != 3 else fitted_mask(call.kept, ordered.shape[1])
    return pooled(seen_by_objective(ordered, "mean" if tokens == "all" else tokens, kept))


@contextlib.contextmanager
def _hooked(*hooks: Any) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
