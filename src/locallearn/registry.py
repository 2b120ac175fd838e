"""Registries: named things that users can add to from their own files."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from locallearn import plugins
from locallearn.errors import ConfigError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to things that refuses duplicates and explains unknown names.

    A name that is not known yet is looked for in the user's plugins (:mod:`locallearn.plugins`) as well.

    Args:
        kind: what is registered, as the option that names it (``"model"``); used in messages.
        takes: the one argument of what is registered, with its type (``"given: BackboneInput"``); None where it is
            no function. One with another signature is refused.
        gives: what the function returns; :meth:`build` refuses anything else.
    """

    def __init__(self, kind: str, takes: str | None = None, gives: type = object) -> None:
        self.kind = kind
        self.takes = takes
        self.gives = gives
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, entry: T) -> T:
        """Register ``entry`` under ``name``.

        Raises:
            UsageError: the name is taken already, or the entry cannot be called as it will be.
        """
        place = _caller()
        if name in self._entries:
            taken = f"{self.kind} {name!r} is registered already by {self._places[name]}"
            raise UsageError(f"{taken}; {place} must choose another name")
        self._check_signature(name, entry, place)
        self._entries[name] = entry
        self._places[name] = place
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """The same as :meth:`add`, as a decorator."""
        return lambda entry: self.add(name, entry)

    def get(self, name: str) -> T:
        """What is registered under ``name``.

        Raises:
            ConfigError: nothing is; the message lists near matches, or else every name.
        """
        if name in self:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=3)
        names = ", ".join(near or sorted(self._entries))
        raise ConfigError(self.kind, name, f"{'did you mean ' if near else 'one of '}{names}")

    def build(self, name: str, given: Any) -> Any:
        """Call what is registered under ``name`` and check what it gives back.

        Raises:
            ConfigError: nothing is registered under this name.
            UsageError: it gave back something else.
        """
        entry: Any = self.get(name)
        made = entry(given)
        if not isinstance(made, self.gives):
            raise UsageError(
                f"{self.kind} {name!r} ({self._places[name]}) returned {type(made).__name__}; "
                f"expected {self.gives.__name__}"
            )
        return made

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

    def __contains__(self, name: object) -> bool:
        return name in self._entries or (plugins.load_named() and name in self._entries)

    def __iter__(self) -> Iterator[str]:
        plugins.load_named()
        return iter(sorted(self._entries))


def _caller() -> str:
    """File and line that call a registry's method."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
