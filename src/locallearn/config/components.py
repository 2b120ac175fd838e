"""Settings that belong to a component: a dataclass beside its code, registered with it under its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from locallearn import registry
from locallearn.config.own_parts import own_options
from locallearn.errors import ConfigError
from locallearn.validation import Defaults

__all__ = ["Defaults", "is_options", "of", "settle_named", "settle_options"]


def of(kind: str, by: str) -> dict[str, str]:
    """What marks a field as the own settings of the component that another field names.

    Such a field takes an instance of the component's dataclass, or a mapping of what is not at its default.

    Args:
        kind: of the component's registry (``"objective.loss"``).
        by: the field that holds its name.
    """
    return {"kind": kind, "by": by}


def is_options(field: dataclasses.Field[Any]) -> bool:
    """Whether a field holds the own settings of a component."""
    return {"kind", "by"} <= set(field.metadata)


def settle_options(part: Any, where: str) -> None:
    """Make what was given for each such field of ``part`` an instance of its component's dataclass.

    Where no component is named yet, it stays as it is until one is.

    Args:
        part: a part of the configuration that is being built.
        where: its dotted name (``"objective"``).

    Raises:
        ConfigError: the settings do not fit the component.
    """
    for field in dataclasses.fields(part):
        given = getattr(part, field.name)
        if not is_options(field) or isinstance(given, Defaults):
            continue
        name = getattr(part, field.metadata["by"])
        if given is None or (isinstance(given, (str, dict, list, tuple)) and not given):
            given = Defaults()
        elif name is not None:
            given = own_options(field.metadata["kind"], name, given, f"{where}.{field.name}")
        object.__setattr__(part, field.name, given)


def settle_named(part: Any, where: str, kind: str) -> None:
    """Look the ``name`` of ``part`` up and settle its ``options``; a class of another library keeps its arguments.

    Raises:
        ConfigError: nothing is registered under the name, or the settings do not fit it.
    """
    if not registry.CLASSES[kind](part.name):
        registry.named(kind).get(part.name)
        settle_options(part, where)
        return
    given = part.options
    if not isinstance(given, (Mapping, Defaults)):
        raise ConfigError(f"{where}.options", given, f"arguments of {part.name}, by name")
    if isinstance(given, Mapping):
        kept = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        object.__setattr__(part, "options", kept or Defaults())
