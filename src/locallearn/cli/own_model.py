"""A model of the user's own that is named on the command line: ``--model my_package.models:build``."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locallearn.config import ObjectiveConfig
from locallearn.errors import ConfigError, LocalLearnError, UsageError

if TYPE_CHECKING:
    from locallearn.core.split_network import SplitNetwork


PACKAGES = ("hf", "timm")
"""Before the colon they name a model that others wrote; no module of the user's own can have these names."""

SHORT_NAMES = {
    "hf:vit-s16": "hf:vit?hidden_size=384&num_hidden_layers=12&num_attention_heads=6&intermediate_size=1536",
}
"""Names for configurations that are asked for often."""


def names_own(model: str) -> bool:
    """Whether ``--model`` names a function of the user's own, or a model that others wrote, and no backbone."""
    return ":" in model


def refuse_changed(options: Any, *names: str) -> None:
    """Refuse options that say what the user's model and batch say already.

    Raises:
        ConfigError: one is not as it is by default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in names:
        if getattr(options, name) != defaults[name]:
            expected = "nothing with a model of your own, whose example is a batch"
            raise ConfigError("--" + name.replace("_", "-"), getattr(options, name), expected)


def own_object(spec: str, option: str = "--model") -> Any:
    """What the function gives that the user names. Modules are looked for in the folder of the command's call, too.

    Args:
        spec: ``package.module:function``; the function takes no argument.
        option: how messages name it.

    Raises:
        UsageError: there is no such function, or it fails.
    """
    place, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(place), name)()
    except LocalLearnError:
        raise
    except Exception as error:
        raise UsageError(f"{option}: {spec} fails: {type(error).__name__}: {error}") from error


def own_model(spec: str) -> tuple[Any, Any]:
    """What the function gives that the user names: a model, or a network of ``ll.split``, and a batch.

    Args:
        spec: as in ``own_object``, or ``timm:NAME`` or ``hf:CONFIG``, which have random weights and a random batch.

    Raises:
        UsageError: there is no such function or model, it fails, or gives something else.
    """
    from torch import nn

    if spec.partition(":")[0] in PACKAGES:
        from locallearn.cli.named_models import Inputs, named_model

        return named_model(spec, Inputs(), "--model")
    made = own_object(spec)
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise UsageError(f"--model: {spec} gives {type(made).__name__}; expected a pair (model, batch)")
    return made


def own_network(
    spec: str, depth: int | None, cuts: Sequence[str], width: Sequence[int], objective: ObjectiveConfig
) -> tuple[SplitNetwork, Any]:
    """The user's model split as the options say, or as it is where the function gives a split network; and a batch.

    Args:
        spec: as in ``own_model``.
        depth: K, where ``cuts`` is ``("auto",)``; None for 2 of a model that is not split.
        cuts: paths of submodules.
        width: G, one number.
        objective: head, loss and all else of the objectives, where they are not as by default.
    """
    from locallearn.core.split import split
    from locallearn.core.split_network import SplitNetwork

    if len(width) != 1:
        raise ConfigError("--width", tuple(width), "one number for a model of your own")
    model, batch = own_model(spec)
    named = tuple(cuts) != ("auto",)
    plain = ObjectiveConfig()
    if isinstance(model, SplitNetwork):
        if (depth or 1, tuple(width), named, objective) != (1, (1,), False, plain):
            raise UsageError(f"--model: {spec} gives a network that is split already; leave out how to split it")
        return model, batch
    if named and depth not in (None, 1, len(cuts) + 1):
        raise ConfigError("--depth", depth, f"{len(cuts) + 1}, or nothing, with {len(cuts)} cuts")
    where: dict[str, Any] = {"cuts": list(cuts)} if named else {"depth": depth or 2}
    head = None if objective.head == plain.head else objective.head
    made = split(
        model, example=batch, width=width[0], head=head, objective=objective.loss, settings=objective, **where
    )
    return made, batch
