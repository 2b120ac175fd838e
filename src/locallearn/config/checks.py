"""Checks of single values; each names the field, the value and what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict

from locallearn.errors import ConfigError

STRICT = ConfigDict(extra="forbid", strict=False)


def check(name: str, value: Any, ok: Callable[[Any], bool], expected: str) -> None:
    """Refuse ``value`` unless it is None (decided later) or ``ok``."""
    if value is not None and not ok(value):
        raise ConfigError(name, value, expected)


LARGEST = 2**31 - 1
"""What no count of anything reaches; libraries below count no further."""


MOST_THREADS = 1024
"""A process that starts more is ended by the system rather than by an error."""
MOST_PIXELS = 8192
"""Of one side of an image."""
MOST_UNITS = 65_536
"""Of one layer."""


def positive_int(name: str, value: Any, most: int = LARGEST) -> None:
    """A whole number of at least 1."""
    check(name, value, lambda v: is_int(v) and v >= 1, "a whole number of at least 1")
    check(name, value, lambda v: v <= most, f"a whole number of at most {most:,}")


def count(name: str, value: Any, most: int = LARGEST) -> None:
    """A whole number of at least 0."""
    check(name, value, lambda v: is_int(v) and v >= 0, "a whole number of at least 0")
    check(name, value, lambda v: v <= most, f"a whole number of at most {most:,}")


def non_negative(name: str, value: Any) -> None:
    """A finite number of at least 0."""
    check(name, value, lambda v: is_real(v) and v >= 0, "a finite number of at least 0")


def fraction(name: str, value: Any) -> None:
    """A number in [0, 1)."""
    check(name, value, lambda v: is_real(v) and 0 <= v < 1, "a number in [0, 1)")


def probability(name: str, value: Any) -> None:
    """A number in [0, 1]."""
    check(name, value, lambda v: is_real(v) and 0 <= v <= 1, "a number in [0, 1]")


def choice(name: str, value: Any, *choices: str) -> None:
    """One of some words."""
    check(name, value, lambda v: v in choices, "one of " + ", ".join(choices))


def is_int(value: Any) -> bool:
    """Whether it is a whole number; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether it is a finite number; a truth value is none."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, float) and math.isfinite(value)
