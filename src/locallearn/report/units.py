"""Times and sizes with their units."""

from __future__ import annotations

_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))


def time_unit(seconds: float) -> tuple[str, float]:
    """The largest unit of which this is at least one, and its length [s]; nanoseconds for less."""
    return next(((name, size) for name, size in _UNITS if seconds >= size), _UNITS[-1])


def time_text(seconds: float) -> str:
    """Seconds in three digits with a fitting unit: ``26.8 ms``."""
    name, size = time_unit(seconds)
    return f"{seconds / size:.3g} {name}"


def mebibytes(n_bytes: float) -> str:
    """Bytes as MiB with one digit: ``152.7``."""
    return f"{n_bytes / 2**20:,.1f}"
