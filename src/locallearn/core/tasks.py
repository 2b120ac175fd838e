"""What the stages of a user's model learn: which loss, and heads whose scores have the form of the model's own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import LABELS, SPANS, ModelCall
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.scores import KINDS, ScoresLoss, class_axis, marked, picked, span_loss, without_axis
from locallearn.losses.user import Loss
from locallearn.losses.whole_outputs import WholeLoss, whole_loss
from locallearn.nn.features import own_loss
from locallearn.nn.modes import evaluating
from locallearn.nn.score_heads import grid
from locallearn.nn.trace import Trace

LOCAL = (
    *("predsim", "infopro", "supervised-contrastive", "transport"),
    *("rebuilt-input", "input-similarity", "random-targets"),
)
"""Losses of stages before the last one, which has that of its scores."""
OF_EXAMPLES = ("predsim", "infopro", "supervised-contrastive", "random-targets")
"""Losses that need one class for every example."""
BY_TOKEN = ("token", "next-token", "rebuilt-input")
"""Losses that see every token where there are tokens."""
OF_CLASSES = ("cross-entropy", "token", "next-token")
"""Losses of stages that take classes alone."""
BUILT_IN = (*OF_CLASSES, *LOCAL, *KINDS)
"""Losses whose last stage has the model's own loss where it computes one, else one of its scores."""


@dataclass(frozen=True)
class Task:
    """The loss of a model's stages, and the form of its scores.

    Attributes:
        name: registered name of the stages' objective; empty where ``loss`` is the objective, through a head.
        loss: of scores and labels: the model's own scores, and heads' where there is no name. None where the model's
            loss alone trains it.
        scores: shape of the model's scores for the example.
        axis: of the classes in them; 0 where they have none.
        batch: axis of the examples in them; None where tokens of all examples lie one after the other.
        named: whether the user named a loss of another kind than the package's own, which all stages then have.
        used: names of the parameters that a loss of the model's whole output depends on.
    """

    name: str
    loss: Loss | None
    scores: tuple[int, ...]
    axis: int
    batch: int | None
    named: bool = False
    used: frozenset[str] = frozenset()

    @property
    def rest(self) -> tuple[int, ...]:
        """Shape of the scores of one example."""
        batch = self.batch or 0
        return (*self.scores[:batch], *self.scores[batch + 1 :])

    @property
    def classes(self) -> int:
        """Scores of one place."""
        return self.scores[self.axis] if self.axis and self.scores else 1

    def labels(self, labels: Any, heads: bool) -> Any:
        """Labels as the loss takes them: classes [B, 1] as [B], of any integer type; checked where that is cheap.

        Args:
            labels: of a batch.
            heads: whether heads take them, too, whose losses may take classes alone.

        Raises:
            UsageError: they do not fit.
        """
        loss = self.loss
        if not isinstance(loss, ScoresLoss) or (self.name and self.name not in BUILT_IN) or labels is None:
            return labels
        loss.check_type(labels)
        if heads and self.name in OF_CLASSES and labels.is_floating_point():
            given = f"labels {tuple(labels.shape)} of {str(labels.dtype).removeprefix('torch.')}"
            raise UsageError(f"batch: {given} are no classes, as those of the example are; split with such ones")
        labels = marked(labels, self.scores, self.axis)
        if loss.kind != "cross-entropy" or labels.is_floating_point():
            if labels.device.type == "cpu":
                loss.check_numbers(labels)
            return labels
        if labels.device.type == "cpu":
            loss.check_classes(labels, self.classes, len(self.scores))
        return without_axis(labels, len(self.scores), self.axis).long()

    def form(self, shape: tuple[int, ...]) -> str:
        """How a head on features of this shape scores: ``vector``, ``tokens``, ``flat`` or ``maps``."""
        if len(self.scores) == 2 and not self.axis:
            return "tokens" if len(shape) == 2 and shape[0] == self.rest[0] else "vector"
        if self.batch is None:
            return "flat" if len(shape) == 2 and not self.scores[0] % shape[0] else "vector"
        if len(self.scores) == 3:
            if len(shape) == 2:
                return "tokens" if shape[0] == self.rest[0] and self.axis == 2 else "vector"
            rows = len(shape) == 3 and ((shape[1] == 1) if self.axis else (shape[1] > 1))
            return "maps" if rows else "vector"
        if len(self.scores) > 3 and (len(shape) == 3 or (len(shape) == 2 and grid(shape, self.size)[0])):
            return "maps"
        return "vector"

    @property
    def size(self) -> tuple[int, int]:
        """H and W of maps of scores; rows of all slices together where there are slices, one row of a sequence."""
        places = [n for axis, n in enumerate(self.scores) if axis and axis != self.axis]
        return (1, places[0]) if len(places) == 1 else (math.prod(places[:-1]), places[-1])


def choose(objective: str | Loss | None, found: Trace, call: ModelCall, model: nn.Module, depth: int) -> Task:
    """What is to be learnt, from what the user named and from the labels of the example.

    Args:
        objective: a registered name, a function of scores and labels, or None for what the labels ask for.
        found: the model's trace.
        call: the example.
        model: a copy of the model, which may run.
        depth: K.

    Raises:
        ConfigError: no loss fits the labels, or the named one is of whole examples.
        UsageError: the named loss does not take them.
    """
    end, scores = found.calls[-1], found.scores
    spans = len(scores) == 3 and all(name in call.kwargs for name in SPANS)
    axis = 2 if spans else class_axis(scores, end.channels, call.labels)
    rows = end.batch if end.batch is not None or len(scores) != 2 else None
    if len(scores) != 2 and rows is None:
        rows = 0
    labels = call.labels if callable(objective) or not scores else marked(call.labels, scores, axis)
    numbers = isinstance(labels, Tensor) and labels.is_floating_point()
    classless = len(scores) < 2 or (len(scores) == 3 and numbers and end.channels is None)
    classless = classless or _one_a_token(found, labels)
    base = Task("", None, scores, 0 if classless else axis, rows)
    if isinstance(objective, type):
        raise ConfigError("objective", objective.__name__, f"a loss, as {objective.__name__}() makes one")
    if callable(objective):
        whole = _of_whole_output(objective, call, model)
        if whole is not None:
            loss, used = whole
            rows = (len(call.first), sum(loss.outputs.sizes))
            return Task("", loss, rows, axis=1, batch=0, named=True, used=used)
        return dataclasses.replace(base, loss=objective, named=True)
    if objective is None and (not scores or (depth == 1 and found.has_loss)):
        if depth > 1:
            raise ConfigError("objective", None, "a function of scores and labels: the model gives its loss alone")
        return base
    if not scores:
        raise ConfigError("objective", objective, "depth=1: the model gives its loss alone, and no scores")
    if spans and objective is None:
        return dataclasses.replace(base, loss=span_loss)
    kind = picked(scores, axis, labels) if objective is None else objective
    if objective is None:
        _check_unsquashed(kind, found)
    by_token = len(scores) == 3 or rows is None
    if kind == "cross-entropy" and by_token and axis == len(scores) - 1 and not numbers:
        asked = objective is None and len(scores) == 3
        kind = "next-token" if asked and _next_token(found, call, model) else "token"
    if kind not in BUILT_IN:
        return dataclasses.replace(base, name=kind)
    loss = _scores_loss(kind, axis)
    loss.check(scores, labels)
    if kind in OF_EXAMPLES and isinstance(labels, Tensor) and labels.dim() > 1 and labels[0].numel() > 1:
        raise ConfigError("objective", kind, "another loss where every token or position has a label of its own")
    if kind in ("token", "next-token"):
        named = rows == 0
    else:
        named = kind not in KINDS or (kind == "cross-entropy" and len(scores) == 2 and not numbers and rows == 0)
    return dataclasses.replace(base, name=kind if named else "", loss=loss)


def _check_unsquashed(kind: str, found: Trace) -> None:
    """Refuse a loss that the labels ask for of scores, where the model gives probabilities and no loss of its own.

    Raises:
        ConfigError: it does; the loss named by the user trains it all the same.
    """
    squashing = {"cross-entropy": "softmax", "binary-cross-entropy": "sigmoid"}.get(kind)
    if squashing == found.squashed and not found.has_loss:
        expected = f"a model that gives scores before its {squashing}, which {kind} applies itself; or "
        raise ConfigError("objective", None, f"{expected}objective={kind!r}, to apply it twice all the same")


def _of_whole_output(loss: Loss, call: ModelCall, model: nn.Module) -> tuple[WholeLoss, frozenset[str]] | None:
    """The loss of all that the model gives, and what it depends on, where it does not take the scores alone.

    Raises:
        UsageError: it takes neither.
    """
    with torch.random.fork_rng(), evaluating(model), torch.enable_grad():
        found = whole_loss(loss, model(*call.args, **call.kwargs), call.batch())
    if found is None:
        return None
    whole, value = found
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True) if value.requires_grad else ()
    return whole, frozenset(name for name, given in zip(named, gradients, strict=False) if given is not None)


def _one_a_token(found: Trace, labels: Any) -> bool:
    """Whether scores [B, T] and labels like them are one of every token, and not T of every example.

    A layer gave [B, T, 1] then, and none gave T channels.
    """
    scores, end = found.scores, found.calls[-1]
    if len(scores) != 2 or end.channels is not None or tuple(getattr(labels, "shape", ())) != tuple(scores):
        return False
    return any(call.shape == (*scores, 1) for call in found.calls)


def _scores_loss(kind: str, axis: int) -> ScoresLoss:
    if kind in ("token", "next-token"):
        return ScoresLoss("cross-entropy", axis, shift=kind == "next-token")
    return ScoresLoss(kind if kind in KINDS else "cross-entropy", axis)


@torch.no_grad()
def _next_token(found: Trace, call: ModelCall, model: nn.Module) -> bool:
    """Whether the model's own loss compares a token's scores with the next label: then the first one has no part.

    Raises:
        ConfigError: there is no such loss, and the labels are the inputs.
    """
    name = next((name for name in LABELS if call.kwargs.get(name) is call.labels), None)
    if not found.has_loss or name is None:
        if isinstance(call.labels, Tensor) and torch.equal(call.labels, call.first):
            expected = "next-token, where labels are the inputs as here and a token's label is the next one; or token"
            raise ConfigError("objective", None, expected)
        return False
    other = call.labels.clone()
    other[:, 0] = torch.where(other[:, 0] == -100, 0, -100)
    with torch.random.fork_rng(), evaluating(model):
        losses = [own_loss(model(*call.args, **(call.kwargs | {name: x}))) for x in (call.labels, other)]
    return losses[0] is not None and losses[1] is not None and bool(torch.equal(losses[0], losses[1]))
