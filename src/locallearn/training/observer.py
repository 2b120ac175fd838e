"""Who is told how a training goes."""

from __future__ import annotations

from typing import Any, Protocol

from locallearn.config import RunConfig
from locallearn.config.checks import check


class Observer(Protocol):
    """Is told how training goes; the command line's progress display is one."""

    def on_start(self, config: RunConfig, steps_per_epoch: int, epochs: int, step: int) -> None:
        """Training of so many epochs starts, or goes on, at ``step``."""

    def on_step(self, step: int) -> None:
        """A step is done."""

    def on_event(self, event: dict[str, Any]) -> None:
        """An event was recorded."""

    def on_warning(self, message: str) -> None:
        """Something that the user should know, in one line."""


TOLD = ("on_start", "on_step", "on_event", "on_warning")
"""What an observer has."""


def check_observer(observer: Any) -> None:
    """Refuse what cannot be told anything.

    Raises:
        ConfigError: it lacks a method of an observer.
    """
    told = f"an object with {', '.join(TOLD)}"
    check("observer", observer, lambda v: all(hasattr(v, name) for name in TOLD), told)


class Quiet:
    """An observer that shows nothing."""

    def on_start(self, config: RunConfig, steps_per_epoch: int, epochs: int, step: int) -> None:
        """Nothing."""

    def on_step(self, step: int) -> None:
        """Nothing."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Nothing."""

    def on_warning(self, message: str) -> None:
        """Nothing."""
