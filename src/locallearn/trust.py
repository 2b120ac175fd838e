"""Which files of code the user has named on this machine, in a file of his own: where they lie and what is in them.

A run's ``config.toml`` names the plugins that it was started with, and a folder from elsewhere names what it likes.
What a file names is imported only where the user has named exactly that file himself: same place, same content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from locallearn.files import only_ours, own_folder

_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK  # no link, and no waiting for the other end of a pipe


def remember(path: Path, content: bytes) -> None:
    """Note that the user has named a file. Where nothing can be written, nothing is remembered.

    Args:
        path: its absolute name, without links.
        content: what is in it now.
    """
    if is_remembered(path, content):
        return
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        ledger = _ledger()
        ledger.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _CAREFUL, 0o600)
        with open(descriptor, "a", encoding="utf-8") as file:
            file.write(_line(path, content) + "\n")


def is_remembered(path: Path, content: bytes) -> bool:
    """Whether the user has named a file with this name and this content. Nobody else's notes count."""
    try:
        with open(os.open(_ledger(), os.O_RDONLY | _CAREFUL), encoding="utf-8") as file:
            return only_ours(os.fstat(file.fileno())) and _line(path, content) in file.read().splitlines()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: nobody has a home here
        return False


def _ledger() -> Path:
    return own_folder("XDG_CONFIG_HOME", ".config") / "locallearn" / "named-plugins.jsonl"


def _line(path: Path, content: bytes) -> str:
    return json.dumps({"path": str(path), "sha256": hashlib.sha256(content).hexdigest()})
