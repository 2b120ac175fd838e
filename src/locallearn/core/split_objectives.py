"""The objectives of a split model's stages, as the user chose them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.config import ObjectiveConfig
from locallearn.config.loss_settings import check_settings
from locallearn.core.block_copies import BlockCopies
from locallearn.core.last_layer import last_layer_loss
from locallearn.core.split_cuts import CutModel
from locallearn.core.split_options import SplitOptions
from locallearn.core.stage_inputs import given_to
from locallearn.core.task_objectives import check_copying, head_objective, last_objective
from locallearn.core.tasks import Task
from locallearn.errors import ConfigError
from locallearn.losses.objectives import Objective, ObjectiveInput
from locallearn.nn.copies import copied
from locallearn.nn.heads import HeadInput
from locallearn.nn.pieces import Piece, features_dtype
from locallearn.validation import Defaults


def stage_objectives(cut: CutModel, options: SplitOptions) -> tuple[list[Objective], list[str]]:
    """The objective of every stage, beside the model's weights, and what each sees of tokens.

    Args:
        cut: the model and where it is cut.
        options: the user's.

    Raises:
        ConfigError: no objective fits the model, or the settings do not fit the objective.
    """
    config, tokens = _config(cut, options), options.tokens
    given, copies = _given(cut, config, options), None
    if options.copying:
        tokens = check_copying(config.head, tokens)
        copies = BlockCopies(
            config, cut.model, cut.dense, cut.found, cut.pieces, cut.call, cut.task, options.seed, options.width
        )
    made: list[Objective] = []
    sees: list[str] = []
    for k, piece in enumerate(cut.pieces[:-1], 1):
        inputs, source = given_to(cut.pieces, k, cut.call.first, cut.found)
        placed = dataclasses.replace(given, position=(k, options.stages), inputs=inputs)
        if copies is not None:
            placed = dataclasses.replace(placed, make_head=copies.maker(k))
        objective, seen = head_objective(cut.task, placed, piece, tokens, k, options.seed)
        objective.source = source if objective.watches else ""
        made.append(objective)
        sees.append(seen)
    made.append(_last(cut, given, options))
    sees.append("mean")
    parameters = list(cut.model.parameters())
    like = next((p for p in parameters if p.is_floating_point()), torch.empty(0, device=parameters[0].device))
    for each, piece in zip(made, cut.pieces, strict=True):
        each.to(device=like.device, dtype=features_dtype(cut.found, piece) or like.dtype)
    return made, sees


def _last(cut: CutModel, given: ObjectiveInput, options: SplitOptions) -> Objective:
    """The last stage's objective, on the model's own scores."""
    chunk = getattr(given.options, "chunk", 0)
    last = last_layer_loss(cut.task, cut.found, cut.call, cut.model, cut.pieces, chunk) if chunk else None
    if options.copying:  # there is no head
        plain = dataclasses.replace(given.config, head="0c1f", head_options=Defaults())
        given = dataclasses.replace(given, config=plain)
    return last or last_objective(cut.task, given, options.seed, options.stages)


def _config(cut: CutModel, options: SplitOptions) -> ObjectiveConfig:
    """The user's settings with the head and the loss that there are."""
    if options.objective == "infopro":
        _check_images(options.objective, cut.call.first)
    tokens, settings = options.tokens, options.settings or ObjectiveConfig()
    by_token = tokens == "all" or (tokens is None and len(cut.found.scores) != 2 and options.stages > 1)
    head = _head_name(options.head, cut.pieces, cut.task, by_token)
    config = dataclasses.replace(settings, head=head, loss=cut.task.name or None)
    if config.loss is None and config.options and not isinstance(config.options, Defaults):
        raise ConfigError("settings.options", config.options, "none with a loss that is not registered with any")
    check_settings(config, config.loss or "", "settings")
    return config


def _check_images(objective: Any, inputs: Tensor) -> None:
    """Refuse what a loss that decodes images cannot rebuild."""
    if not inputs.is_floating_point():
        raise ConfigError(
            "objective", objective, "another loss for a model whose inputs are no images, which it decodes"
        )
    if inputs.amin() < 0 or inputs.amax() > 1:
        raise ConfigError("objective", objective, "another loss for images with pixels outside [0, 1]")


def _head_name(head: Any, pieces: Sequence[Piece], task: Task, by_token: bool) -> str:
    if isinstance(head, str):
        return head
    forms = {task.form(piece.shape) for piece in pieces[:-1]}
    return "0c1f" if by_token and forms & {"tokens", "flat"} else "1c2f"


def _given(cut: CutModel, config: ObjectiveConfig, options: SplitOptions) -> ObjectiveInput:
    """What all stages' objectives are built for; shape and position are each stage's own."""
    scorer = cut.model.get_submodule(cut.found.scorer) if cut.found.scorer else None
    inputs, head = cut.call.first, options.head
    given = ObjectiveInput(
        config=config,
        shape=(),
        groups=options.width,
        classes=options.classes or cut.task.classes,
        image=(inputs.shape[1], inputs.shape[2], inputs.shape[3]) if inputs.dim() == 4 else (0, 0, 0),
        widen=1.0,
        family=type(cut.model).__name__,
        position=(1, 1),
        scorer=scorer if isinstance(scorer, nn.Linear) else None,
    )
    return given if head is None or isinstance(head, str) else dataclasses.replace(given, make_head=_maker(head))


def _maker(head: nn.Module | Callable[[HeadInput], nn.Module]) -> Callable[[HeadInput], nn.Module]:
    """A function that makes a head, of what the user gave as one."""
    if isinstance(head, nn.Module):
        return lambda _given: copied(head)
    if not callable(head):
        raise ConfigError("head", head, "a name, a module, or a function of a HeadInput that makes one")

    def make(given: HeadInput) -> nn.Module:
        made = head(given)
        if not isinstance(made, nn.Module):
            raise ConfigError("head", type(made).__name__, "a function that gives a torch.nn.Module")
        return made

    return make
