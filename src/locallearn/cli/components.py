"""Options of the components that a command line chooses: a plugin's appear like our own."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from locallearn import registry
from locallearn.config.components import is_options
from locallearn.errors import UsageError

T = TypeVar("T")


def with_components(default: T, arguments: Sequence[str], prefix: str = "") -> T:
    """The defaults of a command's options, with those of the components that the arguments choose.

    Args:
        default: a dataclass; parts of it may name a component and hold its settings.
        arguments: of the command line.
        prefix: of the options of ``default`` (``"objective."``).

    Raises:
        UsageError: an option of a component that has none.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(default):  # type: ignore[arg-type]
        value = getattr(default, field.name)
        if is_options(field):
            changes |= _component(default, field, arguments, prefix)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_components(value, arguments, prefix + _own_prefix(default, field.name))
    changes = {name: value for name, value in changes.items() if value is not getattr(default, name)}
    return dataclasses.replace(default, **changes) if changes else default  # type: ignore[type-var]


def _component(part: Any, field: dataclasses.Field[Any], arguments: Sequence[str], prefix: str) -> dict[str, Any]:
    """The component that the arguments name, and its settings, where somebody asks for them."""
    by, kind, flag = field.metadata["by"], field.metadata["kind"], "--" + _hyphens(f"{prefix}{field.name}.")
    asked = [argument.split("=")[0] for argument in arguments if _hyphens(argument).startswith(flag)]
    named = _value("--" + prefix + by, arguments)
    name = named or getattr(part, by)
    if not asked and not (named and {"-h", "--help"} & set(arguments)):
        return {}  # what registers the component is not imported where nobody wants to know
    options = None if name is None else registry.named(kind).options(name, None, prefix + field.name)
    if options is not None:
        kept = getattr(part, field.name)
        return {by: name, field.name: kept if isinstance(kept, type(options)) else options}
    if asked:
        whose = f"name {kind} as well, whose option this is" if name is None else f"{kind} {name} has no such options"
        raise UsageError(f"{asked[0]}: {whose}")
    return {}


def _value(flag: str, arguments: Sequence[str]) -> str | None:
    """What the arguments give an option, the last time."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if _hyphens(name) == _hyphens(flag):
            found = value if equals else following
    return found


def _own_prefix(part: Any, name: str) -> str:
    """What stands before the options of a part: its name, or what tyro was told in its place."""
    hint = typing.get_type_hints(type(part), include_extras=True)[name]
    given = [getattr(note, "name", None) for note in getattr(hint, "__metadata__", ())]
    told = next((other for other in given if other is not None), name)
    return f"{told}." if told else ""


def _hyphens(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value
