"""Options from dataclasses, and errors as one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from locallearn.errors import UsageError

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], command: str, description: str, default: T | None = None) -> T:
    """Build ``kind`` from command line arguments.

    Args:
        kind: a dataclass; its fields are the options and their docstrings the help.
        arguments: what follows the command's name.
        command: the command's name.
        description: what ``--help`` says first.
        default: where options that are not given come from.

    Raises:
        UsageError: the arguments do not fit; one line says which and why.
        SystemExit: ``--help`` was asked for and printed.
    """
    prog = f"locallearn {command}"
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            if default is None:
                return tyro.cli(kind, prog=prog, description=description, args=list(arguments))
            return tyro.cli(kind, prog=prog, description=description, args=list(arguments), default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_one_line(complaint.getvalue())}; see {prog} --help") from None


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws around an error, without its help text."""
    lines = [re.sub(r"^[│|]\s?|\s*[│|]$", "", line.strip()) for line in box.splitlines()]
    text = [line.strip() for line in lines if line.strip() and not line.strip().startswith(("╭", "╰"))]
    rules = [i for i, line in enumerate(text) if line.startswith("─")]
    message = " ".join(text[: rules[0]] if rules else text)
    if rules and text[rules[0] + 1].startswith("Perhaps you meant"):
        near = [line.split()[0] for line in text[rules[0] + 2 :] if line.startswith("--")]
        message += f" (did you mean {' or '.join(near)}?)" if near else ""
    return message.removeprefix("Error ").strip().rstrip(".")
