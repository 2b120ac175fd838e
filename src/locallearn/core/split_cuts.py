"""A copy of the user's model, and where it is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from locallearn.core.batches import ModelCall, model_call
from locallearn.core.overlap import check_overlap
from locallearn.core.plain import check_example
from locallearn.core.shares import find as find_shares
from locallearn.core.split_context import with_context
from locallearn.core.split_options import SplitOptions
from locallearn.core.tasks import Task, choose
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.scores import ScoresLoss
from locallearn.nn.copies import copied
from locallearn.nn.features import Axes, named_layout
from locallearn.nn.named_tensors import kept_tensors
from locallearn.nn.pieces import Piece, pieces
from locallearn.nn.recording import trace
from locallearn.nn.trace import Call, Trace
from locallearn.nn.width import split_channels


@dataclass(frozen=True)
class CutModel:
    """A copy of the user's model, and where it is cut.

    Attributes:
        model: the copy, with width groups where these are asked for.
        dense: what it is a copy of, without.
        call: the example, as the model is called with it.
        found: a forward pass on it.
        task: what the stages learn.
        pieces: the stages.
        grouped: paths of the convolutions that width groups made grouped ones.
    """

    model: nn.Module
    dense: nn.Module
    call: ModelCall
    found: Trace
    task: Task
    pieces: Sequence[Piece]
    grouped: Sequence[str]


def cut_model(model: nn.Module, example: Any, options: SplitOptions) -> CutModel:
    """Trace a model on an example, copy it, and find its stages.

    Raises:
        ConfigError: the model cannot be cut there, or no loss fits the labels.
        UsageError: the model cannot be copied or does not run on the example.
    """
    call = model_call(model, example)
    check_example(model, (call.args, call.kwargs))
    found = trace(model, call.args, call.kwargs)
    made = {*found.names, *found.buffers} - {*kept_tensors(model)}
    if made:
        raise UsageError(f"model: {min(made)} is made in the first forward pass; run the model once, then split it")
    if options.layout is not None:
        _lay_out(found, options.layout)
    if options.context != "none":
        model, options = _with_context(model, found, call, options)
        found = trace(model, call.args, call.kwargs)
    model_copy = copied(model)
    task = choose(options.objective, found, call, model_copy, options.stages)
    cut = pieces(found, options.cuts, options.depth, partial(_unusable, task=task))
    parts = find_shares(model_copy, found, cut, call)
    check_overlap(options.overlap, parts)
    grouped: list[str] = []
    if options.width > 1:
        grouped = split_channels(model_copy, call.args, call.kwargs, found, parts, options.width)
    return CutModel(model_copy, model, call, found, task, parts, grouped)


def _lay_out(found: Trace, layout: str) -> None:
    """Take the user's word for the axes of features with that many."""
    said = named_layout(layout)
    for call in found.calls[:-1]:
        if len(call.shape or ()) == len(layout):
            call.batch, call.channels = said.batch, said.channels


def _with_context(
    model: nn.Module, found: Trace, call: ModelCall, options: SplitOptions
) -> tuple[nn.Module, SplitOptions]:
    """A copy of the model with adapters of context behind its cuts, and the cuts in it."""
    if options.width > 1:
        expected = f"1 with context {options.context}, whose adapter is a whole module's"
        raise ConfigError("width", options.width, expected)
    places = pieces(found, options.cuts, options.depth)
    model, cuts = with_context(model, options.context, places, call, options.seed)
    return model, dataclasses.replace(options, cuts=cuts, depth=None)


def _unusable(call: Call, task: Task) -> str:
    """Why heads cannot learn a task from a call's features, as what would be right."""
    by_class = isinstance(task.loss, ScoresLoss) and task.loss.kind == "cross-entropy"
    shape = list(call.shape or ())
    if by_class and task.batch is None and len(task.scores) == len(shape) == 2 and shape[:1] != [*task.scores[:1]]:
        rows = f"(this one gives {' x '.join(map(str, shape))})"  # such as nodes of graphs
        return f"a row of features for each of the model's {task.scores[0]} scores {rows}"
    if len(task.scores) != 3 or not by_class:
        return ""
    shape = Axes(call.batch or 0, call.channels).shape(call.shape or ())
    if call.other_tokens or task.form(shape) == "vector":
        return "features of the tokens that have labels (a model with an encoder scores the decoder's)"
    return ""
