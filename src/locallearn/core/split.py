"""``split``: a user's own model as local modules."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from locallearn.arguments import checked
from locallearn.config import ObjectiveConfig
from locallearn.config.checks import non_negative, positive_int
from locallearn.core.batches import model_call
from locallearn.core.network import OptimizerFactory
from locallearn.core.split_network import Loss, ModelLoss, SplitNetwork
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.objectives import LocalLoss, Objective, ObjectiveInput, objectives
from locallearn.losses.tokens import build_token_head, token_cross_entropy
from locallearn.nn.features import check_tokens
from locallearn.nn.init import initialise
from locallearn.nn.split import Piece, pieces
from locallearn.nn.trace import Trace, trace
from locallearn.nn.width import split_channels
from locallearn.seeding import seeded


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a learning rate of 1e-3."""
    return torch.optim.AdamW(parameters, lr=1e-3)


@checked
def split(
    model: nn.Module,
    *,
    example: Any,
    cuts: Sequence[str] | None = None,
    depth: int | None = None,
    width: int = 1,
    head: str | None = None,
    objective: str | Loss = "cross-entropy",
    classes: int | None = None,
    tokens: str | None = None,
    optimizer: OptimizerFactory = adamw,
    clip_norm: float = 0.0,
    settings: ObjectiveConfig | None = None,
    seed: int = 0,
) -> SplitNetwork:
    """Turn a model into K local modules.

    Args:
        model: any module whose forward pass runs on ``example``. It is copied and not changed.
        example: a batch as :meth:`SplitNetwork.step` takes it; one forward pass finds where the model can be cut.
        cuts: paths of the submodules after which modules end (``"layer2.1"``, ``"encoder.layer.5"``); K is one more.
        depth: K, instead of ``cuts``: K pieces of balanced cost.
        width: G: width groups of every module but the last, which ends in the model's own scores. Modules of
            convolutions and batch norm only; their inner convolutions become grouped ones, so the copy has smaller
            weights than ``model``; ``merge`` makes them dense again.
        head: auxiliary head, ``<n>c<m>f`` or another registered one; by default ``1c2f``. Where the objective sees
            every token it is ``0c1f`` (layer norm and an unembedding of the module's own) by default, and
            ``shared`` reads the model's own unembedding, without training it.
        objective: a registered loss (``cross-entropy``, ``next-token``, ``token``, ``predsim``...), or a function of
            scores and labels like ``torch.nn.functional.mse_loss``. The last module has the model's own loss where it
            returns one, else this function or the cross entropy of its scores.
        classes: outputs of a head; by default as many as the model's scores have.
        tokens: what a head sees of B x T x C features: ``mean``, ``class`` (the first token) or ``all``; by default
            ``all`` where the model itself scores every token, else ``mean``.
        optimizer: makes the optimizer of one module from its parameters.
        clip_norm: largest gradient norm of a module; 0 means no clipping.
        settings: everything else that an objective can be told; its ``head`` and ``loss`` are not looked at.
        seed: of the heads' initial weights.

    Raises:
        ConfigError: the model cannot be cut there; the message names the tensor in the way and the nearest legal
            cuts.
        UsageError: the model does not run on the example.
    """
    positive_int("width", width)
    positive_int("depth", depth)
    non_negative("clip_norm", clip_norm)
    if (cuts is None) == (depth is None):
        raise ConfigError("cuts", cuts, "either cuts or depth, and not both")
    call = model_call(model, example)
    found = trace(model, call.args, call.kwargs)
    parts = pieces(found, call.first.shape[0], cuts, depth)
    tokens = tokens or ("all" if len(found.scores) == 3 else "mean")
    check_tokens(tokens)
    copied = copy.deepcopy(model)
    grouped: list[str] = []
    if width > 1:
        grouped = split_channels(copied, call.args, call.kwargs, found, parts, width)
    if objective == "cross-entropy" and tokens == "all":
        objective = "token"
    head = head or ("0c1f" if tokens == "all" else "1c2f")
    if objective == "infopro" and (call.first.amin() < 0 or call.first.amax() > 1):
        raise ConfigError("objective", objective, "another loss for images with pixels outside [0, 1]")
    loss = objective if isinstance(objective, str) else None
    config = dataclasses.replace(settings or ObjectiveConfig(), head=head, loss=loss)
    given = _given(copied, call.first, found, config, width, classes)
    made: list[Objective] = [_objective(objective, given, k, parts, tokens, seed) for k in range(1, len(parts))]
    made.append(ModelLoss(_scores_loss(objective) if isinstance(objective, str) else objective))
    like = next(copied.parameters())
    for each in made:
        each.to(device=like.device, dtype=like.dtype)
    return SplitNetwork(copied, parts, made, tokens, optimizer, clip_norm, width, grouped)


class UserLoss(Objective):
    """A loss of the user's own through an auxiliary head.

    Args:
        head: features to scores, [G, B, outputs]; of tokens, [B, T, outputs].
        loss: of scores and labels.
    """

    def __init__(self, head: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.head = head
        self.loss = loss

    def forward(self, features: Tensor, batch: Batch) -> LocalLoss:
        """Losses [G] of the nodes."""
        scores = self.head(features)
        if features.dim() == 3:
            total = self.loss(scores, batch.labels)[None]
            return LocalLoss(total, {"loss": total.detach()}, None)
        total = torch.stack([self.loss(scores_BC, batch.labels) for scores_BC in scores])
        return LocalLoss(total, {"loss": total.detach()}, scores.detach())


def _given(
    model: nn.Module, inputs: Tensor, found: Trace, config: ObjectiveConfig, width: int, classes: int | None
) -> ObjectiveInput:
    """What all modules' objectives are built for; shape and position are each module's own."""
    scorer = model.get_submodule(found.scorer) if found.scorer else None
    return ObjectiveInput(
        config=config,
        shape=(),
        groups=width,
        classes=classes or found.scores[-1],
        image=(inputs.shape[1], inputs.shape[2], inputs.shape[3]) if inputs.dim() == 4 else (0, 0, 0),
        widen=1.0,
        family=type(model).__name__,
        position=(1, 1),
        scorer=scorer if isinstance(scorer, nn.Linear) else None,
    )


def _objective(
    objective: str | Loss, given: ObjectiveInput, k: int, parts: Sequence[Piece], tokens: str, seed: int
) -> Objective:
    """The objective of module k, built for the shape of its features."""
    shape = parts[k - 1].shape
    pooled = len(shape) == 2 and tokens != "all"
    given = dataclasses.replace(given, shape=shape[-1:] if pooled else shape, position=(k, len(parts)))
    with seeded(seed, "layers", k):
        if isinstance(objective, str):
            made = objectives.build(objective, given)
        else:
            head = build_token_head(given) if len(given.shape) == 2 else given.head(given.classes)
            made = UserLoss(head, objective)
    if made.watches:
        raise ConfigError("objective", objective, "another loss in a model of your own, whose blocks are not watched")
    if made.views != 1 or made.masking is not None:
        expected = "a loss on one view of every whole example (methods like dgssl and mae have others)"
        raise ConfigError("objective", objective, expected)
    initialise(made, given.groups, seed, str(k), "head")
    made.start()
    return made


def _scores_loss(objective: str) -> Loss:
    """The loss of the last module's scores."""
    if objective in ("next-token", "token"):
        return partial(token_cross_entropy, shift=objective == "next-token")
    return _cross_entropy


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores.float(), labels)
