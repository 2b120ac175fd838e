"""Pooled features of some stages of any network, in the form that the stages' heads see them, in one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from locallearn.core.batches import CalledBatch
from locallearn.core.model_stage import ModelStage
from locallearn.core.network import LocalNetwork
from locallearn.core.split_network import SplitNetwork
from locallearn.core.stage_ends import at_ends
from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.nn.features import Axes, features_of, prediction
from locallearn.nn.hooks import removed_after
from locallearn.training.depth_features import DepthPlace, FeatureReader, places, pooled

StageReader = Callable[[Batch], list[Tensor]]
"""Features [B, D] of every chosen stage, fp32; the caller sets eval mode and autocast."""


def stage_places(network: LocalNetwork) -> list[DepthPlace]:
    """The ends of a network's stages; that of a user's own model is named by the submodule that a stage ends with."""
    if not isinstance(network, SplitNetwork):
        return places(network, "modules")
    return [DepthPlace(k, piece.path or "end", k, True) for k, piece in enumerate(network.pieces, start=1)]


def checked_stage(stage: object, depth: int) -> int:
    """A stage's number from 1; None is the last one.

    Raises:
        UsageError: there is no such stage.
    """
    if stage is None:
        return depth
    if not isinstance(stage, int) or isinstance(stage, bool) or not 1 <= stage <= depth:
        raise UsageError(f"stage: {stage!r} is not valid; expected a number from 1 to {depth}")
    return stage


def stage_reader(network: LocalNetwork, stages: Sequence[int], precision: str = "fp32", pool: int = 1) -> StageReader:
    """What reads the features of some stages for a batch of the network's.

    The last stage of a user's own model ends in scores: its features are what the linear layer is given that makes
    them.

    Args:
        network: the network.
        stages: from 1, rising.
        precision: of the network's computation.
        pool: side that feature maps are averaged to [positions].
    """
    if not isinstance(network, SplitNetwork):
        ends = places(network, "modules")
        reader = FeatureReader(network, [ends[stage - 1] for stage in stages], precision, pool)
        return lambda batch: reader(batch.images)
    return partial(_read, network, [network.model_stages[stage - 1] for stage in stages], pool)


class _ReadError(BaseException):
    """Leaves the model's forward pass where the last features are there; no model catches it."""


def _read(network: SplitNetwork, stages: Sequence[ModelStage], pool: int, batch: Batch) -> list[Tensor]:
    found: dict[str, Tensor] = {}
    calls: list[tuple[Tensor, Any]] = []

    def at_cut(k: int, output: Any) -> None:
        features = features_of(output)
        if features is not None:
            piece, tokens = cut[k].piece, cut[k].tokens
            found[cut[k].name] = _seen(piece.layout.ordered(features), tokens, batch, pool, piece.mask_place)
        if cut[k] is stages[-1]:
            raise _ReadError

    def note(_module: nn.Module, args: Any, output: Any) -> None:
        calls.append((args[0], output))

    scored, model, scores = stages[-1].last, network.model, None
    cut = [stage for stage in stages if not stage.last]
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and scored]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with removed_after(hooks), contextlib.suppress(_ReadError), at_ends(model, [each.piece for each in cut], at_cut):
        scores = prediction(network.output(batch))
    if scored:
        found[stages[-1].name] = _last(network, stages[-1], calls, scores, batch, pool)
    for stage in stages:
        if stage.name not in found:
            raise UsageError(f"stage: {stage.piece.path} did not run on a batch, as it did on the example")
    return [found[stage.name] for stage in stages]


def _last(
    network: SplitNetwork,
    stage: ModelStage,
    calls: Sequence[tuple[Tensor, Any]],
    scores: Tensor | None,
    batch: Batch,
    pool: int,
) -> Tensor:
    """What the linear layer is given whose output the model's scores are."""
    given = next((features for features, output in reversed(calls) if output is scores), None)
    if given is None:
        expected = f"1 to {network.depth - 1}: no linear layer makes the model's scores" if network.depth > 1 else ""
        raise UsageError(
            f"stage: {stage.name} is not valid; expected {expected or 'a model whose scores a linear layer makes'}"
        )
    axis = network.task.batch
    if axis is None:  # tokens of all examples, one after the other
        given, axis = given.unflatten(0, (batch.examples, -1)), 0
    return _seen(Axes(axis, given.dim() - 1).ordered(given), stage.tokens, batch, pool)


def _seen(ordered: Tensor, tokens: str, batch: Batch, pool: int, mask_place: str = "") -> Tensor:
    """One vector an example."""
    assert isinstance(batch, CalledBatch)
    return pooled(batch.seen(ordered, "mean" if tokens == "all" else tokens, mask_place), pool)
