"""What the stages of a user's model learn: which loss, and heads whose scores have the form of the model's own."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import LABELS, SPANS, CalledBatch, ModelCall
from locallearn.data.store import Batch
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.losses.scores import KINDS, ScoresLoss, class_axis, picked, span_loss, without_axis
from locallearn.losses.tokens import build_token_head
from locallearn.losses.user import Loss, UserLoss, called, takes_batch
from locallearn.nn.features import own_loss, prediction
from locallearn.nn.init import initialise
from locallearn.nn.pieces import Piece
from locallearn.nn.score_heads import MapHead, Shaped, grid
from locallearn.nn.trace import Trace
from locallearn.seeding import seeded

LOCAL = ("predsim", "infopro", "supervised-contrastive", "transport", "rebuilt-input", "random-targets")
"""Losses of stages before the last one, which has that of its scores."""
BY_TOKEN = ("token", "next-token", "rebuilt-input")
"""Losses that see every token where there are tokens."""
BUILT_IN = ("cross-entropy", "token", "next-token", *LOCAL, *KINDS)
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
    """

    name: str
    loss: Loss | None
    scores: tuple[int, ...]
    axis: int
    batch: int | None
    named: bool = False

    @property
    def rest(self) -> tuple[int, ...]:
        """Shape of the scores of one example."""
        batch = self.batch or 0
        return (*self.scores[:batch], *self.scores[batch + 1 :])

    @property
    def classes(self) -> int:
        """Scores of one place."""
        return self.scores[self.axis] if self.axis and self.scores else 1

    def labels(self, labels: Any) -> Any:
        """Labels as the loss takes them: classes [B, 1] as [B], of any integer type; checked where that is cheap.

        Raises:
            UsageError: they do not fit.
        """
        loss = self.loss
        if not isinstance(loss, ScoresLoss) or (self.name and self.name not in BUILT_IN) or labels is None:
            return labels
        loss.check_type(labels)
        if loss.kind != "cross-entropy" or labels.is_floating_point():
            return labels
        if labels.device.type == "cpu":
            loss.check_classes(labels, self.classes, len(self.scores))
        return without_axis(labels, len(self.scores), self.axis).long()

    def form(self, shape: tuple[int, ...]) -> str:
        """How a head on features of this shape scores: ``vector``, ``tokens``, ``flat`` or ``maps``."""
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
        ConfigError: no loss fits the labels.
        UsageError: the named loss does not take them.
    """
    end, scores = found.calls[-1], found.scores
    spans = len(scores) == 3 and all(name in call.kwargs for name in SPANS)
    axis = 2 if spans else class_axis(scores, end.channels, call.labels)
    rows = end.batch if end.batch is not None or len(scores) != 2 else None
    if len(scores) != 2 and rows is None:
        rows = 0
    numbers = isinstance(call.labels, Tensor) and call.labels.is_floating_point()
    classless = len(scores) < 2 or (len(scores) == 3 and numbers and end.channels is None)
    base = Task("", None, scores, 0 if classless else axis, rows)
    if callable(objective):
        return dataclasses.replace(base, loss=objective, named=True)
    if objective is None and (not scores or (depth == 1 and found.has_loss)):
        if depth > 1:
            raise ConfigError("objective", None, "a function of scores and labels: the model gives its loss alone")
        return base
    if not scores:
        raise ConfigError("objective", objective, "depth=1: the model gives its loss alone, and no scores")
    if spans and objective is None:
        return dataclasses.replace(base, loss=span_loss)
    kind = picked(scores, axis, call.labels) if objective is None else objective
    by_token = len(scores) == 3 or rows is None
    if kind == "cross-entropy" and by_token and axis == len(scores) - 1 and not numbers:
        asked = objective is None and len(scores) == 3
        kind = "next-token" if asked and _next_token(found, call, model) else "token"
    if kind not in BUILT_IN:
        return dataclasses.replace(base, name=kind)
    loss = _scores_loss(kind, axis)
    loss.check(scores, call.labels)
    if kind in ("token", "next-token"):
        named = rows == 0
    else:
        named = kind not in KINDS or (kind == "cross-entropy" and len(scores) == 2 and not numbers and rows == 0)
    return dataclasses.replace(base, name=kind if named else "", loss=loss)


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
    modes = {part: part.training for part in model.modules()}
    with torch.random.fork_rng():
        losses = [own_loss(model.eval()(*call.args, **(call.kwargs | {name: x}))) for x in (call.labels, other)]
    for part, training in modes.items():
        part.training = training
    return losses[0] is not None and losses[1] is not None and bool(torch.equal(losses[0], losses[1]))


def check_copying(head: str, task: Task, piece: Piece, tokens: str | None) -> str:
    """What a head that copies the model's blocks sees of tokens: all, of examples that have one score vector each.

    Raises:
        ConfigError: the model scores tokens or positions, which a block without its masks would see ahead of.
    """
    if task.form(piece.shape) != "vector" or task.name in BY_TOKEN:
        expected = "1c2f, 0c1f or terminal for a model that scores every token or position"
        raise ConfigError("head", head, expected)
    if tokens not in (None, "all"):
        raise ConfigError("tokens", tokens, f"all with head {head}, whose blocks see every token")
    return "all"


def head_objective(
    task: Task, given: ObjectiveInput, piece: Piece, tokens: str | None, k: int, seed: int
) -> tuple[Objective, str]:
    """The objective of stage k, and what it sees of tokens.

    Args:
        task: what is to be learnt.
        given: what all stages' objectives are built for.
        piece: the stage.
        tokens: what the user wants it to see of tokens; None for what the task needs.
        k: 1 .. K - 1.
        seed: of the heads' initial weights.
    """
    form = task.form(piece.shape)
    by_token = task.name in BY_TOKEN or (not task.name and form != "vector")
    if by_token and tokens in ("mean", "class"):
        form, by_token = "vector", False
    sees = tokens or ("all" if by_token else "mean")
    if task.name == "rebuilt-input" and sees != "all":
        raise ConfigError("tokens", sees, "all with rebuilt-input, which rebuilds every token")
    shape = piece.shape[-1:] if len(piece.shape) == 2 and sees != "all" else piece.shape
    given = dataclasses.replace(given, shape=shape)
    with seeded(seed, "layers", k):
        made = objectives.build(task.name, given) if task.name else _with_head(task, given, form)
    if made.views != 1 or made.masking is not None:
        expected = "a loss on one view of every whole example (methods like dgssl and mae have others)"
        raise ConfigError("objective", task.name, expected)
    if given.make_head is None:  # weights of a user's own head are the user's
        initialise(made, given.groups, seed, str(k), "head")
    made.start()
    return made, sees


def _with_head(task: Task, given: ObjectiveInput, form: str) -> UserLoss:
    assert task.loss is not None
    if form != "vector" and given.groups > 1:
        raise ConfigError("width", given.groups, "1 for a model that scores every token or position")
    rest = task.rest
    if form in ("tokens", "flat"):
        head = build_token_head(given)
    elif form == "maps":
        head = map_head(given, task)
    else:
        outputs = given.classes if len(rest) == 1 else math.prod(rest)
        rest = (outputs,) if len(rest) == 1 else rest
        head = given.head(outputs)
    loss = copy.deepcopy(task.loss) if isinstance(task.loss, nn.Module) else task.loss
    return UserLoss(Shaped(head, rest, form, task.axis, task.batch or 0), loss)


class ModelLoss(Objective):
    """The objective of the last stage: the model's own loss where it computes one, else a loss of its scores.

    Args:
        of_scores: the loss of scores and labels; None where there is the model's alone.
        own: whether the model's own loss comes first.
    """

    needs_labels = False

    def __init__(self, of_scores: Loss | None, own: bool = True) -> None:
        super().__init__()
        self.of_scores, self.own = of_scores, own

    def forward(self, output: Any, batch: Batch) -> LocalLoss:  # type: ignore[override]
        """Loss [1] of what the model gave for a batch."""
        loss, scores = own_loss(output) if self.own else None, prediction(output)
        if loss is None:
            if self.of_scores is None or scores is None:
                raise UsageError("batch: the model computes no loss on it, as it did on the example")
            if labels_of(batch) is None and not takes_batch(self.of_scores):
                raise UsageError("batch: there are no labels, and the model computes no loss of its own")
            loss = called(self.of_scores, scores, batch)
        loss = loss.mean()
        logits = scores.detach()[None] if scores is not None and scores.dim() == 2 else None
        return LocalLoss(loss[None], {"loss": loss.detach()[None]}, logits)


class OwnScores(Objective):
    """A registered objective on the scores of the model itself, which take the place of its head's.

    Args:
        made: the objective; it has a ``head``.
        shape: of the scores of one example.
    """

    def __init__(self, made: Objective, shape: tuple[int, ...]) -> None:
        super().__init__()
        head: Any = made.head
        with torch.no_grad():
            grouped = head(torch.zeros(2, *shape)).dim() > 1 + len(shape)
        made.head = _Given(grouped)
        self.of_scores = made

    def forward(self, output: Any, batch: Batch) -> LocalLoss:  # type: ignore[override]
        """Loss [1] of what the model gave for a batch."""
        scores = prediction(output)
        assert scores is not None
        return self.of_scores(scores, batch)


class _Given(nn.Module):
    """Stands for a head: gives the scores that it is given, as those of one group where heads have groups."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.grouped = grouped

    def forward(self, scores: Tensor) -> Tensor:
        return scores[None] if self.grouped else scores


def labels_of(batch: Batch) -> Any:
    """A batch's labels; None where there are none."""
    return batch.call.labels if isinstance(batch, CalledBatch) and batch.call is not None else batch.labels


def last_objective(task: Task, given: ObjectiveInput, seed: int, depth: int) -> Objective:
    """The objective of the last stage, on the model's own output.

    Raises:
        ConfigError: the registered one has no head that the model's scores could stand for.
    """
    loss = copy.deepcopy(task.loss) if isinstance(task.loss, nn.Module) else task.loss
    if not task.name or task.name in BUILT_IN:
        return ModelLoss(loss, own=not task.named or task.name in BUILT_IN)
    with seeded(seed, "layers", depth):
        made = objectives.build(task.name, dataclasses.replace(given, shape=task.rest))
    if not isinstance(getattr(made, "head", None), nn.Module):
        expected = "one whose class keeps its head in self.head, for which the model's own scores stand in the "
        raise ConfigError("objective", task.name, expected + "last stage; or a function of scores and labels")
    made.start()
    return OwnScores(made, task.rest)


def map_head(given: ObjectiveInput, task: Task) -> nn.Module:
    """The head that the settings name, for maps: a user's own or registered one, or convolutions."""
    own = given.own_head(task.classes)
    return own or MapHead(given.config.head, given.shape, given.classes, task.size, given.hidden)
