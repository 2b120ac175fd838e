"""Put the real ``--help`` of every command into the reference when the site is built."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any
from unittest.mock import patch

from locallearn.cli.main import main

_PLACE = re.compile(r"<!-- help: (.*?) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace ``<!-- help: COMMAND -->`` by what ``locallearn COMMAND --help`` prints."""
    return _PLACE.sub(lambda match: f"```text\n{help_text(match[1])}\n```", markdown)


def help_text(command: str) -> str:
    """What ``locallearn COMMAND --help`` prints on a terminal of 100 columns, without colour."""
    printed = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}), contextlib.redirect_stdout(printed):
        code = main([*command.split(), "--help"])
    if code:
        raise RuntimeError(f"locallearn {command} --help ended with {code}")
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).rstrip()
