"""Registries: named things that users can add to from their own files."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from locallearn import arguments, plugins
from locallearn.arguments import checked
from locallearn.errors import ConfigError, LocalLearnError, UsageError
from locallearn.validation import Defaults, validated

T = TypeVar("T")

_HOMES = {
    "objective.loss": "locallearn.losses",
    "objective.head": "locallearn.losses",
    "data.name": "locallearn.data",
    "augment.own": "locallearn.data.own",
    "optimizer.name": "locallearn.training.optimizers",
    "schedule.name": "locallearn.training.schedules",
    "loggers.names": "locallearn.training.loggers",
}
"""The package that fills each registry when it is imported."""

CLASSES: dict[str, Callable[[str], bool]] = {
    "optimizer.name": lambda name: "." in name,
    "schedule.name": lambda name: name[:1].isupper(),
}
"""Names that are no registered ones but classes of another library, whose arguments only that library knows."""

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep

_registries: dict[str, Registry[Any]] = {}


def named(kind: str) -> Registry[Any]:
    """The registry of what an option names (``"objective.loss"``), filled.

    Settings are checked against it where they are built, before anything else of the package is imported.
    """
    importlib.import_module(_HOMES[kind])
    return _registries[kind]


def is_filled(kind: str) -> bool:
    """Whether the package that fills a registry has been imported, or is being imported."""
    return kind in _registries


def settled(kind: str, name: str, options: type | None, given: object, where: str) -> Any:
    """The settings of its own that a component gets; None where it has none.

    Args:
        kind: the option that names the component (``"objective.loss"``).
        name: of the component.
        options: the dataclass of its settings; None where it has none.
        given: an instance, or a mapping of what is not at its default; nothing is all defaults.
        where: dotted name of the settings, for messages (``"objective.options"``).

    Raises:
        ConfigError: an unknown setting, a wrong value, or settings of another component.
    """
    given = {} if given is None or given == Defaults() else given
    if options is not None:
        return validated(options, given, where)
    if not isinstance(given, (str, Mapping, Sequence)) or given:
        raise ConfigError(where, given, f"nothing: {kind} {name} has no options")
    return None


def unknown(kind: str, name: str, names: Sequence[str], also: str = "") -> ConfigError:
    """That nothing is registered under a name: near matches, or else every name.

    Args:
        kind: the option that names it.
        name: what was asked for.
        names: what there is, in order.
        also: what else may be named.
    """
    near = difflib.get_close_matches(name, names, n=3)
    return ConfigError(kind, name, f"one of {', '.join([*names, *([also] if also else [])])}", near)


class Registry(Generic[T]):
    """A mapping from names to things that refuses duplicates and explains unknown names.

    A name that is not known yet is looked for in the user's plugins (``locallearn.plugins``) as well.

    Args:
        kind: what is registered, as the option that names it (``"model"``); used in messages.
        takes: the one argument of what is registered, with its type (``"given: BackboneInput"``); None where it is
            no function. One with another signature is refused.
        gives: what the function returns; ``build`` refuses anything else.
        also: what else may be named where this registry is asked, for messages.
    """

    def __init__(self, kind: str, takes: str | None = None, gives: Any = object, also: str = "") -> None:
        self.kind = kind
        self.takes = takes
        self.gives = gives
        self.also = also
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}
        self._options: dict[str, type] = {}
        if kind in _HOMES:
            _registries[kind] = self

    @checked
    def add(self, name: str, entry: T, options: type | None = None) -> T:
        """Register ``entry`` under ``name``.

        Args:
            name: how settings and the command line name it.
            entry: what is registered.
            options: a frozen dataclass of its own settings, each with a default and a docstring, which ``--help``
                prints. What is registered finds them as ``options`` in what it is given.

        Raises:
            UsageError: the name is taken already, the entry cannot be called as it will be, or the options are no
                such dataclass.
        """
        place = _caller()
        if name in self._entries:
            taken = f"{self.kind} {name!r} is registered already by {self._places[name]}"
            raise UsageError(f"{taken}; {place} must choose another name")
        self._check_signature(name, entry, place)
        if options is not None:
            self._check_options(name, options, place)
            self._options[name] = options
        self._entries[name] = entry
        self._places[name] = place
        return entry

    @checked
    def register(self, name: str, *, options: type | None = None) -> Callable[[T], T]:
        """The same as ``add``, as a decorator."""
        return lambda entry: self.add(name, entry, options)

    def remove(self, name: str) -> None:
        """Forget what is registered under ``name``, as before a notebook's cell that registers it is run again."""
        for kept in (self._entries, self._places, self._options):
            kept.pop(name, None)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Forget at the end what is registered within: for tests of plugins, and for notebooks."""
        kept: tuple[Any, ...] = (self._entries, self._places, self._options)
        before = tuple(dict(one) for one in kept)
        try:
            yield
        finally:
            for one, entries in zip(kept, before, strict=True):
                one.clear()
                one |= entries

    def options(self, name: str, given: object, where: str) -> Any:
        """The settings of its own that what is registered under ``name`` gets; None where it has none.

        Args:
            name: of the component; one that is not registered here has no settings.
            given: an instance of its dataclass, or a mapping of what is not at its default; nothing is all defaults.
            where: dotted name of the settings, for messages (``"objective.options"``).

        Raises:
            ConfigError: an unknown setting, a wrong value, or settings of another component.
        """
        own = self._options.get(name) if name in self else None
        return settled(self.kind, name, own, given, where)

    @checked
    def get(self, name: str) -> T:
        """What is registered under ``name``.

        Raises:
            ConfigError: nothing is; the message lists near matches, or else every name.
        """
        if name in self:
            return self._entries[name]
        raise unknown(self.kind, name, list(self), self.also)

    @checked
    def build(self, name: str, given: Any) -> Any:
        """Call what is registered under ``name`` and check what it gives back.

        Raises:
            ConfigError: nothing is registered under this name.
            UsageError: it gave back something else.
        """
        entry: Any = self.get(name)
        try:
            made = entry(given)
        except LocalLearnError:
            raise
        except Exception as error:
            place = self.place(name)
            if place is None:
                raise
            said = str(error).strip().split("\n")[0]
            line = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in place]
            at = f", line {line[-1]}" if line else ""
            raise UsageError(f"{self.kind} {name!r} ({place}): {type(error).__name__}: {said}{at}") from error
        if not isinstance(made, self.gives):
            raise UsageError(
                f"{self.kind} {name!r} ({self._places[name]}) returned {type(made).__name__}; "
                f"expected {self.gives.__name__}"
            )
        return made

    def place(self, name: str) -> str | None:
        """File and line that registered a name; None where it is the package's own, or not known."""
        found = self._places.get(name)
        return None if found is None or found.startswith(_PACKAGE) else found

    def _check_signature(self, name: str, entry: Any, place: str) -> None:
        if self.takes is None:
            return
        found = f"a {type(entry).__name__}"
        if callable(entry):
            signature = inspect.signature(entry)
            try:
                signature.bind(None)
                return
            except TypeError:
                found = f"a function of {signature}"
        expected = f"a function of ({self.takes}) that returns {self.gives.__name__}"
        raise UsageError(f"{self.kind} {name!r} ({place}): expected {expected}, this is {found}")

    def _check_options(self, name: str, options: Any, place: str) -> None:
        """A frozen dataclass that can be made from nothing."""
        params = getattr(options, "__dataclass_params__", None)
        if isinstance(options, type) and params is not None and params.frozen:
            required = [
                field.name
                for field in dataclasses.fields(options)
                if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            ]
            if not required:
                return
            found = f"{options.__name__}.{required[0]} has none"
        else:
            found = f"this is {options!r}"
        expected = "a frozen dataclass whose fields all have defaults"
        raise UsageError(f"{self.kind} {name!r} ({place}): expected options to be {expected}; {found}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries or (plugins.load_named() and name in self._entries)

    def __iter__(self) -> Iterator[str]:
        plugins.load_named()
        return iter(sorted(self._entries))


def _caller() -> str:
    """File and line that call a registry's method."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename in (__file__, arguments.__file__):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
