"""The real ``--help`` of every command and every public name in the reference; no page without its included code."""

from __future__ import annotations

import contextlib
import io
import os
import re
from html import unescape
from typing import Any
from unittest.mock import patch

from mkdocs.exceptions import PluginError

import locallearn
from locallearn import _PLACES
from locallearn.cli.main import commands, main

PLACE = "<!-- commands -->"
_NAMED = re.compile(r"^::: ll\.(\w+)$", re.MULTILINE)
"""A public name in the Python reference, as a user writes it."""
_FIRST = {"train": "train gn-dgl", "bench": "bench"}
"""What some commands need before ``--help`` tells everything."""
_MARK = re.compile(r"-8\s*<\s*-")
"""What names a file to include; none may be left when a page is finished."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the place for commands by a section for each, with what its ``--help`` prints; likewise for names."""
    if _NAMED.search(markdown):
        return names(markdown)
    if PLACE not in markdown:
        return markdown
    sections = [
        f"## {name}\n\n{what[0].upper()}{what[1:]}.\n\n{help_block(name)}" for name, what in commands().items()
    ]
    return markdown.replace(PLACE, "\n\n".join(sections))


def names(markdown: str) -> str:
    """The Python reference: every public name once, as a user writes it, and linked where it is named."""
    found = _NAMED.findall(markdown)
    if sorted(found) != sorted(locallearn.__all__):
        wrong = ", ".join(sorted(set(found) ^ set(locallearn.__all__))) or "a name twice"
        raise PluginError(f"reference/python.md: needs '::: ll.NAME' once for each public name; wrong: {wrong}")
    linked = re.sub(r"`ll\.(\w+)`", lambda name: f"[{name[0]}][{_PLACES[name[1]]}.{name[1]}]", markdown)
    return _NAMED.sub(lambda name: _directive(name[1]), linked)


def _directive(name: str) -> str:
    shown = f'heading: "ll.{name}", toc_label: "ll.{name}"'
    return f"::: {_PLACES[name]}.{name}\n    options: {{{shown}}}"


def on_page_content(html: str, **_: Any) -> str:
    """Show names in docstrings as a user writes them: ``ll.split`` instead of ``locallearn.split``."""
    return re.sub(rf"<code>locallearn\.({'|'.join(locallearn.__all__)})\b", r"<code>ll.\1", html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Stop the build where a page still has the mark of a file that should be in its place."""
    if _MARK.search(unescape(re.sub(r"<[^>]*>", "", output))):
        raise PluginError(f"{page.file.src_path}: a mark of an included file is left, so its code is missing")
    return output


def help_block(command: str) -> str:
    """What ``locallearn COMMAND --help`` prints, and for ``bench`` that of each of its kinds."""
    shown = help_text(_FIRST.get(command, command))
    kinds = re.findall(r"^ *(?!usage)(\w+)(?:: |  )", shown, re.MULTILINE) if command == "bench" else []
    return "\n\n".join(f"```text\n{text}\n```" for text in [shown, *(help_text(f"bench {kind}") for kind in kinds)])


def help_text(command: str) -> str:
    """All that ``locallearn COMMAND --help`` can tell, on a terminal of 100 columns, without colour."""
    printed = io.StringIO()
    every = "--help-all" if command.split()[0] in ("train", "verify") else "--help"
    with patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}), contextlib.redirect_stdout(printed):
        code = main([*command.split(), every])
    if code:
        raise RuntimeError(f"locallearn {command} --help ended with {code}")
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).rstrip()
