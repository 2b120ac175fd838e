"""The text of ``--help``: what tyro knows of the options, laid out so that sentences stay whole.

tyro draws boxes and keeps the line breaks of docstrings; here its text is read back into entries. A command with many
options shows the few that people change, and all of them with ``--help-all``.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WIDTH = 129
"""Columns that tyro is given: as many as it fills with one box (it puts boxes side by side from 130 on)."""

_INDENT = 28
"""Where descriptions begin, beside their options [columns]."""

_OF_COMPONENT = re.compile(r"\b(\w+-)?options\.")
"""Options of an objective, head or data set that the arguments name: whoever chooses one wants to see them."""


@dataclass
class Entry:
    """One option: its names with what they take, and its description."""

    names: str
    text: str = ""

    @property
    def flags(self) -> list[str]:
        """Its names alone (``--overwrite``, ``--no-overwrite``); of a positional argument none."""
        return re.findall(r"(?<!\S)--?[\w.-]+", self.names)


@dataclass
class Group:
    """Options that belong together."""

    title: str
    text: str = ""
    entries: list[Entry] = field(default_factory=list)


def read(text: str) -> tuple[str, list[Group]]:
    """Tyro's help text as what stands before its boxes, and the groups of options in them."""
    head, *boxes = re.split(r"^╭─ ", text, flags=re.MULTILINE)
    return head.strip(), [_read_box(box) for box in boxes]


def _read_box(box: str) -> Group:
    title, *lines = box.splitlines()
    lines = [line.removeprefix("│ ").removesuffix("│").rstrip() for line in lines if not line.startswith("╰")]
    group = Group(title.strip("─╮ "))
    rule = next((i for i, line in enumerate(lines) if line and set(line) == {"─"}), None)
    if rule is not None:
        group.text, lines = " ".join(lines[:rule]), lines[rule + 1 :]
    for line in lines:
        if line and not line[0].isspace():
            names, *rest = re.split(r"\s{2,}", line, maxsplit=1)
            group.entries.append(Entry(_plain(names), " ".join(rest)))
        elif line.strip():
            group.entries[-1].text += " " + line.strip()
    for entry in group.entries:
        entry.text = _cleaned(entry)
    return group


def _plain(names: str) -> str:
    """Names without tyro's notation: ``{None}|INT`` is INT, ``[INT [INT ...]]`` is ``INT ...``."""
    names = re.sub(r"\{None\}\|", "", names)
    return re.sub(r"\[(\S+) \[\1 \.\.\.\]\]", r"\1 ...", names)


def _cleaned(entry: Entry) -> str:
    """The description without a default that says nothing; a switch that is off loses its second name as well."""
    if entry.text.endswith("(default: False)"):
        entry.names = entry.names.split(",")[0]
    return re.sub(r" ?\(default: (None|False|)\)$", "", entry.text.strip())


def render(head: str, groups: Sequence[Group], short: Mapping[str, str], shown: Sequence[str] = ()) -> str:
    """The help text for this terminal.

    Args:
        head: usage and description.
        groups: the options.
        short: short forms of options, and what each stands for.
        shown: the options to show, in this order; by default all. Positional arguments are always shown, and the
            options of chosen components.
    """
    width = min(shutil.get_terminal_size().columns, 100)
    parts = ["\n".join(_wrapped(line, width, "") for line in head.splitlines())]
    everything = [(group, entry) for group in groups for entry in group.entries]
    if shown:
        flagged = {flag: entry for _, entry in everything for flag in entry.flags}
        positional = [entry for _, entry in everything if not entry.flags]
        chosen = [entry for _, entry in everything if any(_OF_COMPONENT.search(flag) for flag in entry.flags)]
        entries = [*positional, *(_by(flagged[short.get(name, name)], name) for name in shown), *chosen]
        parts.append("\n".join(["options:", *(_entry(entry, width) for entry in entries)]))
        left = len(everything) - len(entries)
        parts.append(
            _wrapped(f"--help-all tells the other {left} options, and what each short form stands for.", width)
        )
    else:
        forms: dict[str, list[str]] = {}
        for name, whole in short.items():
            forms.setdefault(whole, []).append(name)
        for group in groups:
            title = _wrapped(f"{group.title}{': ' + group.text if group.text else ':'}", width)
            parts.append("\n".join([title, *(_entry(_with_short(entry, forms), width) for entry in group.entries)]))
    return "\n\n".join(parts)


def _by(entry: Entry, name: str) -> Entry:
    """The entry under the name that it is asked for by: its short form."""
    return Entry(entry.names if name in entry.flags else entry.names.replace(entry.flags[0], name, 1), entry.text)


def _with_short(entry: Entry, forms: Mapping[str, Sequence[str]]) -> Entry:
    found = [name for flag in entry.flags for name in forms.get(flag, ())]
    return Entry(", ".join([*found, entry.names]), entry.text)


def _entry(entry: Entry, width: int) -> str:
    text = _wrapped(entry.text, width, " " * _INDENT)
    names = f"  {entry.names}"
    return names + text[len(names) :] if len(names) < _INDENT - 1 else f"{names}\n{text}"


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
