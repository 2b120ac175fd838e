"""Options of the components that a command line chooses: a plugin's appear like our own."""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from locallearn import plugins, registry
from locallearn.config.components import Defaults, is_options
from locallearn.config.own_parts import own_options
from locallearn.errors import UsageError

T = TypeVar("T")


def with_components(default: T, arguments: Sequence[str], prefix: str = "") -> tuple[T, list[str]]:
    """The defaults of a command's options, with those of the components that the arguments choose.

    Args:
        default: a dataclass; parts of it may name a component and hold its settings.
        arguments: of the command line.
        prefix: of the options of ``default`` (``"objective."``).

    Returns:
        The defaults, and the arguments that are left: those of a class of another library are read here, for only
        that library can check them.

    Raises:
        UsageError: an option of a component that has none.
    """
    changes, left = {}, list(arguments)
    for field in dataclasses.fields(default):  # type: ignore[arg-type]
        value = getattr(default, field.name)
        if is_options(field):
            named, left = _component(default, field, left, prefix)
            changes |= named
        elif "each" in field.metadata:
            changes |= _each(default, field, left, prefix)
        elif dataclasses.is_dataclass(value):
            changes[field.name], left = with_components(value, left, prefix + _own_prefix(default, field.name))
    changes = {name: value for name, value in changes.items() if value is not getattr(default, name)}
    return (dataclasses.replace(default, **changes) if changes else default), left  # type: ignore[type-var]


def _component(
    part: Any, field: dataclasses.Field[Any], arguments: list[str], prefix: str
) -> tuple[dict[str, Any], list[str]]:
    """The component that the arguments name with its settings, where somebody asks for them; and what is left."""
    by, kind, flag = field.metadata["by"], field.metadata["kind"], "--" + _hyphens(f"{prefix}{field.name}.")
    asked = [argument.split("=")[0] for argument in arguments if _hyphens(argument).startswith(flag)]
    named = _value("--" + prefix + by, arguments)
    name = named or getattr(part, by)
    if kind == "optimizer.name" and named:
        plugins.allow_import(named)
    if not asked and not (named and {"-h", "--help"} & set(arguments)):
        return {}, arguments  # what registers the component is not imported where nobody wants to know
    if kind in registry.CLASSES and name is not None and registry.CLASSES[kind](name):
        given, left = _arguments(flag, arguments)
        kept = getattr(part, field.name) if name == getattr(part, by) else Defaults()
        return {by: name, field.name: {**(kept if isinstance(kept, dict) else {}), **given}}, left
    options = None if name is None else own_options(kind, name, None, prefix + field.name)
    if options is not None:
        kept = getattr(part, field.name)
        return {by: name, field.name: kept if isinstance(kept, type(options)) else options}, arguments
    if asked:
        whose = f"name {kind} as well, whose option this is" if name is None else f"{kind} {name} has no such options"
        raise UsageError(f"{asked[0]}: {whose}")
    return {}, arguments


def _each(part: Any, field: dataclasses.Field[Any], arguments: Sequence[str], prefix: str) -> dict[str, Any]:
    """The components of a list that the arguments name, and the settings of each that has some."""
    kind = field.metadata["each"]
    by = kind.rpartition(".")[2]
    told = _values(f"--{prefix}{by}", arguments)
    names, known = getattr(part, by) if told is None else tuple(told), registry.named(kind)
    kept = {name: own for name, own in getattr(part, field.name).items() if name in (names or ())}
    of_each = {
        name: kept.get(name) or known.options(name, None, f"{prefix}{field.name}.{name}") for name in names or ()
    }
    return {by: names, field.name: {name: own for name, own in of_each.items() if own is not None}}


def _values(flag: str, arguments: Sequence[str]) -> list[str] | None:
    """Everything that the arguments give an option of several values, the last time; None where they do not."""
    found: list[str] | None = None
    here = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            here = _hyphens(name) == _hyphens(flag)
            found = ([value] if equals else []) if here else found
        elif here and found is not None:
            found.append(argument)
    return found


def _arguments(flag: str, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a class that begin with ``flag``, as Python's literals or else text; and what is left."""
    found: dict[str, list[str]] = {}
    left: list[str] = []
    into = left
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if _hyphens(name).startswith(flag):
            into = found.setdefault(name[len(flag) :].replace("-", "_"), [])
            into += [value] if equals else []
        else:
            into = left if argument.startswith("--") else into
            into.append(argument)
    for name, values in found.items():
        if not values:
            raise UsageError(f"{flag}{name}: a value is missing")
    read = {name: tuple(map(_literal, values)) for name, values in found.items()}
    return {name: values[0] if len(values) == 1 else values for name, values in read.items()}, left


def _literal(text: str) -> Any:
    """A number, ``true``, ``false``, or text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float, str, tuple)) else text


def _value(flag: str, arguments: Sequence[str]) -> str | None:
    """What the arguments give an option, the last time."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
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
