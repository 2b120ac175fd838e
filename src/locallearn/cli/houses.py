"""Houses of their own: packages that bring commands, and without which everything else works."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

HOUSES = ("bench", "thesis")
"""Their names; ``COMMANDS`` of each tells its commands: the module that runs it, and what it does in a line."""


def commands() -> dict[str, tuple[str, str]]:
    """The commands of all houses that are installed: module and line by name."""
    found: dict[str, tuple[str, str]] = {}
    for house in HOUSES:
        package = part(house)
        found |= package.COMMANDS if package else {}
    return found


def part(house: str, module: str | None = None) -> ModuleType | None:
    """A house, or one of its modules; None where the house is not installed."""
    name = f"locallearn.{house}"
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(f"{name}.{module}" if module else name)
