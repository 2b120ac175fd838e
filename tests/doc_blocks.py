"""The code blocks of a page of documentation, and how they are run.

``python`` blocks of a page are executed in order in one namespace, and a ``text`` block after ``<!-- output -->``
is what the block before it prints. In ``console`` blocks lines that begin with ``$`` are commands and the others
their output, with ``...`` for anything; ``sh`` blocks are commands without output. ``toml`` is parsed. A block after
``<!-- not run: REASON -->`` is left alone; after ``<!-- output of another run: WHICH -->`` commands run and their
output is not compared. ``<!-- run first: COMMAND -->`` runs before the next block and is not shown. Code that is
indented instead of fenced is refused.

A command of ours runs in this process where it can, else in a copy of one that has imported torch; what has a pipe or
something else of the shell's is run by bash.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import programs
from locallearn.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("python", "console", "sh", "text", "toml")
_FENCE = re.compile(r"^( *)(```+)(\S*).*$")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_RUN_FIRST = re.compile(r"<!-- run first: (.+) -->")
_OTHER = "<!-- output of another run: "
_LOOP = re.compile(r"^for (\w+) in ([^;\n]+); do\n(.*?)^done$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"([A-Z_]+)=(\S+)")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it is, what it holds, and the comment on the line before it."""

    page: str
    line: int
    language: str
    text: str
    comment: str

    @property
    def not_run(self) -> str | None:
        """Why it is not run here, or None."""
        match = _NOT_RUN.fullmatch(self.comment)
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        match = _FENCE.match(lines[number])
        number += 1
        first = _RUN_FIRST.fullmatch(lines[number - 1].strip())
        if first:
            found.append(Block(page, number, "sh", first[1] + "\n", ""))
        if re.match(r"^    (\$ |locallearn |import )", lines[number - 1]):
            found.append(Block(page, number, "indented", lines[number - 1], ""))
        if match is None:
            continue
        start, inside = number, []
        while lines[number].strip() != match[2]:
            inside.append(lines[number].removeprefix(match[1]))
            number += 1
        number += 1
        before = next((line.strip() for line in reversed(lines[: start - 1]) if line.strip()), "")
        found.append(Block(page, start, match[3], "\n".join(inside) + "\n", before))
    return found


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that is shown under it."""
    found: list[tuple[str, str]] = []
    for line in text.replace("\\\n", " ").splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].strip(), ""))
        else:
            command, output = found[-1]
            found[-1] = (command, output + line)
    return found


def lines_of(text: str) -> list[str]:
    """The commands of a sh block; of a loop those that bash would run."""
    assert subprocess.run(["bash", "-n", "-c", text]).returncode == 0, text
    text = _LOOP.sub(_unrolled, text.replace("\\\n", " "))
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _unrolled(loop: re.Match[str]) -> str:
    name, words, body = loop.groups()
    lines = [line.strip() for line in body.splitlines()]
    return "\n".join(re.sub(rf"\${name}\b", word, line) for word in words.split() for line in lines)


def check_output(want: str, got: str, where: object) -> None:
    """Compare what is shown with what was printed; ``...`` stands for anything."""
    got = "\n".join(line.rstrip() for line in got.splitlines()) + "\n"
    assert doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS), (
        f"{where}: shown\n{want}\nprinted\n{got}"
    )


class Page:
    """Runs the blocks of one page, in the current folder."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def run(self, block: Block) -> None:
        """Run one block; whatever is wrong with it is an AssertionError or the block's own exception."""
        assert block.language in LANGUAGES, f"{block}: a block needs one of the languages {LANGUAGES}"
        if block.not_run:
            return
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block.text, str(block), "exec", dont_inherit=True), self.names)
            self.printed = printed.getvalue()
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.comment == "<!-- output -->":
            check_output(block.text, self.printed, block)
        elif block.language == "text":
            assert not re.search(r"^(\$ |locallearn |python )", block.text, re.MULTILINE), (
                f"{block}: a command as text"
            )
        else:
            listed = commands(block.text) if block.language == "console" else [(c, "") for c in lines_of(block.text)]
            for command, output in listed:
                self.command(command, output, block)

    def command(self, command: str, output: str, where: Block) -> None:
        """Run one command; it must end well unless an error is what is shown."""
        code, printed, complaint = _way(command)(command)
        if "locallearn: " not in output:
            assert code == 0, f"{where}: {command} ended with {code}: {complaint}"
        if output and not where.comment.startswith(_OTHER):
            check_output(output, printed + (complaint if code else ""), f"{where}: {command}")


def _way(command: str) -> Callable[[str], tuple[int, str, str]]:
    """How it can run: with a process of its own where it starts others, has variables or registers something."""
    text = command.split(" #")[0]
    if not re.match(rf"({_VARIABLE.pattern} )*locallearn ", text) or re.search(r"[|>$;&]", text):
        return _in_shell
    return _in_process if re.match(r"locallearn (?!.*(--processes|asynchronous|--plugin))", text) else _in_copy


def _in_process(command: str) -> tuple[int, str, str]:
    """``locallearn ...`` without a new process: torch is imported already."""
    printed, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaint):
        code = main(shlex.split(command, comments=True)[1:])
    return code, printed.getvalue(), complaint.getvalue()


def _in_copy(command: str) -> tuple[int, str, str]:
    words = shlex.split(command, comments=True)
    first = words.index("locallearn")
    variables = dict(word.split("=", 1) for word in words[:first])
    done = programs.run("-m", *words[first:], folder=Path.cwd(), variables=variables)
    return done.returncode, done.stdout, done.stderr


def _in_shell(command: str) -> tuple[int, str, str]:
    bin_folder = Path(sys.executable).parent
    paths = {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, env={**os.environ, **paths}
    )
    return done.returncode, done.stdout, done.stderr
