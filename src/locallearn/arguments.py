"""Arguments of public functions: a wrong one is named, with what it is and what would be right."""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from locallearn.errors import ConfigError, LocalLearnError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class ArgumentError(ConfigError, TypeError):
    """An argument is missing, of no known name, or of another type than the function's signature says."""

    def __init__(self, where: str, message: str) -> None:
        Exception.__init__(self, f"{where}: {message}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have the arguments of a function compared with its annotations before it is called.

    Raises:
        ArgumentError: by the function, where an argument does not fit.
    """
    signature, where = inspect.signature(function), function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        _check(where, signature, _hints(function), args, kwargs)
        return function(*args, **kwargs)

    return call


def checked_on_failure(function: Callable[P, R]) -> Callable[P, R]:
    """The same where the function has checks of its own, or is called often: arguments are compared if it fails.

    Raises:
        ArgumentError: by the function, where it failed and an argument does not fit.
    """
    signature, where = inspect.signature(function), function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except LocalLearnError:
            raise
        except Exception:
            _check(where, signature, _hints(function), args, kwargs)
            raise

    return call


def checked_fields(kind: C) -> C:
    """Have the fields of a dataclass compared with their annotations when one is made; its own checks come first.

    Raises:
        ArgumentError: by the class, where a value does not fit.
    """
    return _with_checks(kind, always=True)


def checked_names(kind: C) -> C:
    """The same for a dataclass that every step makes: fields are compared only where making one failed."""
    return _with_checks(kind, always=False)


def _with_checks(kind: C, always: bool) -> C:
    make: Any = kind.__init__
    signature, where = inspect.signature(make), kind.__name__

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            make(self, *args, **kwargs)
        except LocalLearnError:
            raise
        except Exception:
            _check(where, signature, _hints(kind), (self, *args), kwargs)
            raise
        if always:
            _check(where, signature, _hints(kind), (self, *args), kwargs)

    kind.__init__ = init
    return kind


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    """Annotations, as types; without those whose names only type checkers know."""
    torch = sys.modules.get("torch")  # where it is not loaded, no value is of its types
    known = {} if torch is None else {"torch": torch, "nn": torch.nn, "Tensor": torch.Tensor}
    found: dict[str, Any] = {}
    for place in reversed(of.__mro__) if isinstance(of, type) else (of,):
        names = vars(sys.modules[place.__module__])
        for name, hint in inspect.get_annotations(place).items():
            with contextlib.suppress(NameError):
                found[name] = eval(hint, known | names) if isinstance(hint, str) else hint
    return found


def _check(where: str, signature: inspect.Signature, hints: dict[str, Any], args: Any, kwargs: Any) -> None:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ArgumentError(where, f"{error}; expected {_shown_signature(signature)}") from None
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if (
            name not in hints
            or name == "self"
            or kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        ):
            continue
        if not _fits(value, hints[name]):
            raise ArgumentError(where, f"{name} is {_shown(value)}; expected {_named(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotation; what cannot be told is."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if hint is None:
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if origin is collections.abc.Callable:
        return callable(value) and (not inner or not isinstance(inner[0], list) or takes(value, len(inner[0])))
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        return _fits_all(value, origin, [one for one in inner if one is not ...])
    if origin is not None:
        return not isinstance(origin, type) or isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        return callable(value) or "__call__" not in vars(hint)
    if not isinstance(hint, type):
        return True
    return isinstance(value, hint)


def takes(function: Any, count: int) -> bool:
    """Whether a function may be called with so many arguments; one that is written in C does not tell, and may be."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _fits_all(value: Any, origin: Any, inner: list[Any]) -> bool:
    """Whether it is a sequence of such values; a list is as good as a tuple, and a text is neither."""
    wanted = collections.abc.Iterable if origin is collections.abc.Iterable else collections.abc.Sequence
    if not isinstance(value, wanted) or isinstance(value, str | bytes):
        return False
    return (
        len(set(map(str, inner))) != 1
        or wanted is not collections.abc.Sequence
        or all(_fits(x, inner[0]) for x in value)
    )


def _shown(value: Any) -> str:
    """A value as a message shows it: short, or by its type."""
    if value is None or isinstance(value, bool | int | float | str | Path):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    if isinstance(value, types.FunctionType):
        return f"the function {value.__name__}{inspect.signature(value)}"
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    return f"the class {name}" if isinstance(value, type) else f"of type {name}"


def _named(hint: Any) -> str:
    """An annotation in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(one) for one in inner)
    if origin is Literal:
        return " or ".join(repr(one) for one in inner)
    if origin is typing.Annotated:
        return _named(inner[0])
    if origin is collections.abc.Callable:
        count = len(inner[0]) if inner and isinstance(inner[0], list) else 0
        return "a function" if not count else f"a function of {count} argument{'s' * (count > 1)}"
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        return f"a sequence of {_named(inner[0])}" if inner else "a sequence"
    if hint in (None, type(None)):
        return "None"
    return getattr(origin or hint, "__name__", str(hint))


def _shown_signature(signature: inspect.Signature) -> str:
    names = [name for name in signature.parameters if name != "self"]
    return ", ".join(names) or "none"
