"""The terminal: names of files, classes and parts are shown as they are, and none of them can command it."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from locallearn.errors import printable


class Terminal(Console):
    """A console whose strings have no markup and no control characters; what has a style is a ``Text``.

    Args:
        settings: as of ``rich.console.Console``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:  # type: ignore[override]
        """A string as text, without control characters."""
        return super().render_str(printable(text), **settings)


def say(text: object) -> None:
    """Print a line of results: exactly as it is to a pipe, without control characters to a terminal."""
    print(printable(str(text)) if sys.stdout.isatty() else text)


def warn(message: object) -> None:
    """Print a warning on one line of standard error."""
    print(f"locallearn: warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)
