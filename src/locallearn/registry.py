"""Registries: named things that users can add to from their own files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from locallearn.errors import ConfigError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to things that refuses duplicates and explains unknown names.

    Args:
        kind: what is registered, as the option that names it (``"model"``); used in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Register ``entry`` under ``name``.

        Raises:
            UsageError: the name is taken already.
        """
        if name in self._entries:
            raise UsageError(f"{self.kind} {name!r} is registered already; choose another name")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """The same as :meth:`add`, as a decorator."""
        return lambda entry: self.add(name, entry)

    def get(self, name: str) -> T:
        """What is registered under ``name``.

        Raises:
            ConfigError: nothing is; the message lists near matches, or else every name.
        """
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=3)
        names = ", ".join(near or sorted(self._entries))
        raise ConfigError(self.kind, name, f"{'did you mean ' if near else 'one of '}{names}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
