"""The objectives of a user's model's stages, for a task."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import CalledBatch
from locallearn.core.tasks import BUILT_IN, BY_TOKEN, Task
from locallearn.data.store import Batch
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.losses.tokens import build_token_head
from locallearn.losses.user import Loss, UserLoss, called, takes_batch
from locallearn.losses.whole_outputs import WholeLoss
from locallearn.nn.features import own_loss, prediction
from locallearn.nn.heads import HeadInput
from locallearn.nn.init import initialise
from locallearn.nn.pieces import Piece
from locallearn.nn.score_heads import MapHead, Shaped
from locallearn.seeding import seeded


def check_copying(head: str, tokens: str | None) -> str:
    """What a head that copies the model's blocks sees of tokens: all, as the blocks do.

    Raises:
        ConfigError: it is to see less.
    """
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
    loss = getattr(given.options, "of", "") if task.name == "transport" else task.name
    by_token = loss in BY_TOKEN or (not loss and form != "vector")
    if task.name == "transport" and form != "vector" and not by_token:
        expected = "next-token or token where the model scores every token"
        raise ConfigError("settings.options.of", loss, expected)
    if by_token and tokens in ("mean", "class"):
        form, by_token = "vector", False
    sees = tokens or ("all" if by_token else "mean")
    if task.name == "rebuilt-input" and sees != "all":
        raise ConfigError("tokens", sees, "all with rebuilt-input, which rebuilds every token")
    shape = piece.shape[-1:] if len(piece.shape) == 2 and sees != "all" else piece.shape
    given = dataclasses.replace(given, shape=shape)
    own: list[nn.Module] = []
    if given.make_head is not None:
        given = dataclasses.replace(given, make_head=_noting(given.make_head, own))
    with seeded(seed, "layers", k):
        made = objectives.build(task.name, given) if task.name else _with_head(task, given, form)
    if made.views != 1 or made.masking is not None:
        expected = "a loss on one view of every whole example (methods like dgssl and mae have others)"
        raise ConfigError("objective", task.name, expected)
    initialise(made, given.groups, seed, str(k), "head", apart=own)  # weights of a user's own head are the user's
    made.start()
    return made, sees


def _noting(make: Callable[[HeadInput], nn.Module], made: list[nn.Module]) -> Callable[[HeadInput], nn.Module]:
    """The same maker of heads, which notes what it makes."""

    def noting(given: HeadInput) -> nn.Module:
        made.append(make(given))
        return made[-1]

    return noting


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
    scored = not isinstance(loss, WholeLoss)
    return UserLoss(Shaped(head, rest, form, task.axis, task.batch or 0), loss, scored)


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
        if isinstance(self.of_scores, WholeLoss):
            loss = called(self.of_scores.loss, output, batch)
            return LocalLoss(loss[None], {"loss": loss.detach()[None]}, None)
        loss, scores = own_loss(output) if self.own else None, prediction(output)
        if loss is None:
            if self.of_scores is None or scores is None:
                raise UsageError("batch: the model computes no loss on it, as it did on the example")
            if labels_of(batch) is None and not takes_batch(self.of_scores):
                raise UsageError("batch: there are no labels, and the model computes no loss of its own")
            loss = called(self.of_scores, scores, batch)
        loss = loss.mean()
        scored = scores is not None and scores.dim() == 2 and scores.shape[1] > 1
        logits = scores.detach()[None] if scores is not None and scored else None
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
