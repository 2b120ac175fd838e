"""Heads and losses of the user's own are tried on a few images before a run begins, so that a mistake is one line."""

from __future__ import annotations

import copy
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.config import RunConfig
from locallearn.core.local_step import LocalStep
from locallearn.core.methods import classifier_layout, methods
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Store
from locallearn.errors import LocalLearnError, UsageError
from locallearn.losses.objectives import LocalLoss, objectives
from locallearn.nn.heads import heads

_IMAGES = 4


def try_parts(network: LocalNetwork, config: RunConfig, store: Store) -> None:
    """Train a copy of the network for one step on a few images, if a head or a loss in it is the user's own.

    Args:
        network: it is not touched.
        config: names its parts.
        store: training images.

    Raises:
        UsageError: a part does not do what it must; the message names it, its file and what would be right.
    """
    layout = methods.build(config.method, config)
    settings = [module.objective for module in layout.modules]
    settings += [classifier_layout(config).objective] * (len(network.stages) - len(settings))
    if not any(_named(own) for own in settings):
        return
    twin = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        batch = next(store.epoch(0, _IMAGES))
        features: Any = batch.images
        for stage, own in zip(twin, settings, strict=True):
            part = _named(own)
            if part:
                _check_rows(stage.objective, stage.groups, part)
            step = LocalStep(stage, torch.optim.SGD(stage.own_parameters().values(), lr=0.0))
            try:
                out, loss = step.compute(features, batch, 0)
                _check_loss(loss, stage.groups, len(batch.labels), part)
                step.backward(loss)
            except LocalLearnError:
                raise
            except Exception as error:
                if not part:
                    raise
                hint = f"; a head takes features and gives [{stage.groups}, images, outputs]"
                raise UsageError(f"{part}: {_told(error)}{hint if 'objective.head' in part else ''}") from error
            features = stage.handed_on(out)


def _named(settings: Any) -> str:
    """The user's own loss and head among these settings, with the places that registered them."""
    found = [("objective.loss", objectives, settings.loss), ("objective.head", heads, settings.head)]
    own = [(kind, name, registry.place(name)) for kind, registry, name in found if name is not None]
    return " with ".join(f"{kind} {name!r} ({place})" for kind, name, place in own if place)


def _check_rows(objective: nn.Module, groups: int, part: str) -> None:
    for name, parameter in objective.named_parameters():
        if not parameter.dim() or len(parameter) % groups:
            raise UsageError(
                f"{part}: {name} is {list(parameter.shape)}; expected a first dimension that the {groups} groups of "
                "the module divide, for group g owns the g-th part of its rows"
            )


def _check_loss(loss: Any, groups: int, examples: int, part: str) -> None:
    if not part:
        return
    if not isinstance(loss, LocalLoss):
        raise UsageError(f"{part}: forward gives {type(loss).__name__}; expected ll.LocalLoss")
    expected = f"one value a group, [{groups}]"
    if not isinstance(loss.total, Tensor) or tuple(loss.total.shape) != (groups,):
        shape = list(loss.total.shape) if isinstance(loss.total, Tensor) else type(loss.total).__name__
        raise UsageError(f"{part}: the loss's total is {shape}; expected {expected}")
    if not loss.total.requires_grad:
        raise UsageError(f"{part}: the loss's total has no gradient; expected {expected}, not detached")
    logits = loss.logits
    if logits is not None and tuple(logits.shape[:2]) != (groups, examples):
        raise UsageError(
            f"{part}: logits are {list(logits.shape)}; expected [{groups}, {examples}, classes]: group, image, class"
        )
    for name, term in loss.terms.items():
        if tuple(term.shape) != (groups,):
            raise UsageError(f"{part}: term {name!r} is {list(term.shape)}; expected {expected}")


def _told(error: Exception) -> str:
    """What happened, and where in a file that is not this package's or torch's."""
    said = str(error).strip().split("\n")[0]
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    where = f" (line {places[-1].lineno} of {places[-1].filename})" if places else ""
    return f"{type(error).__name__}: {said}{where}"


def _is_library(file: str) -> bool:
    return "/site-packages/" in file or "/locallearn/" in file
