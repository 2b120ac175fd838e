"""Options from dataclasses, and errors as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import TypeVar

import tyro

from locallearn.cli.components import with_components
from locallearn.errors import ConfigError, UsageError

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
    if default is None and not _required(kind):
        default = kind()
    if default is not None:
        default, arguments = with_components(default, arguments)
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


def _required(kind: type) -> list[str]:
    """The fields that have no default."""
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def check_at_least(options: object, **least: int) -> None:
    """Refuse whole numbers that are too small; None is decided later.

    Raises:
        ConfigError: the message names the flag, the value and the least one.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and min(value if isinstance(value, tuple) else (value,)) < bound:
            raise ConfigError(f"--{name.replace('_', '-')}", value, f"a whole number of at least {bound}")


def check_links(device_flops: float | None, **links: float | None) -> None:
    """Refuse ``--bandwidth`` and ``--latency`` where times are not predicted.

    Raises:
        UsageError: the message names the option.
    """
    for name, value in links.items():
        if device_flops is None and value is not None:
            raise UsageError(f"--{name} needs --device-flops, the operations a second of one device")


def recipe_name(arguments: Sequence[str], command: str, example: str) -> str | None:
    """The recipe that the arguments begin with; None where only help is asked for.

    Raises:
        UsageError: it is missing.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    if not {"-h", "--help"} & set(arguments):
        raise UsageError(f"{command}: RECIPE is missing; for example: locallearn {example}")
    return None


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws around an error, without its help text."""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip().strip("│|").strip()
        if not text or text.startswith(("╭", "╰")):
            continue
        if set(text) <= set("─-"):
            parts.append([])
        else:
            parts[-1].append(text)
    if "╭" not in box:  # on a terminal without box characters the title stands above a rule of its own
        parts = parts[1:]
    message = " ".join(parts[0])
    hint = parts[1] if len(parts) > 1 else []
    if hint and hint[0].startswith("Perhaps you meant"):
        near = [line.split()[0] for line in hint if line.startswith("--")]
        message += f" (did you mean {' or '.join(near)}?)" if near else ""
    return message.removeprefix("Error ").rstrip(".")
