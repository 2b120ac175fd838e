"""Plain values into frozen dataclasses, and one line where they do not fit."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from locallearn.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Defaults:
    """A component's own settings where none was given: all at their defaults, whatever they are."""


def validated(kind: type[T], values: object, where: str) -> T:
    """Build a frozen dataclass from a mapping or from another of its kind; types and pydantic's constraints hold.

    Args:
        kind: a dataclass whose fields all have defaults.
        values: its fields by name, those at their defaults may be left out; or an instance.
        where: dotted name of the whole, as in TOML and on the command line (``"objective.options"``).

    Raises:
        ConfigError: an unknown name, a wrong type or a wrong value.
    """
    if isinstance(values, kind):
        values = dataclasses.asdict(values)  # type: ignore[call-overload]
    if not isinstance(values, Mapping):
        raise ConfigError(where, values, f"settings of {kind.__name__}, by name")
    defaults = {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in defaults:
            near = difflib.get_close_matches(str(name), defaults, n=3)
            known = f"did you mean {', '.join(near)}" if near else f"one of {', '.join(defaults)}"
            raise ConfigError(f"{where}.{name}", value, f"a known setting ({known})")
        if value is None and defaults[name] is not None:
            raise ConfigError(f"{where}.{name}", value, f"a value; leave it out for {defaults[name]!r}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise explained(error, where) from None


def explained(error: ValidationError, where: str = "") -> ConfigError:
    """What pydantic found, as one line that names the setting, its value and what would be right."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in (*([where] if where else []), *first["loc"]))
    unknown = first["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    message = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return ConfigError(name, first["input"], "a known setting (this one is not)" if unknown else message)
