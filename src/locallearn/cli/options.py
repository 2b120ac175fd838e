"""Options from dataclasses, and errors as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from locallearn.cli import help as helping
from locallearn.cli.component_options import with_components
from locallearn.config.checks import LARGEST, MOST_PIXELS, MOST_THREADS
from locallearn.errors import ConfigError, UsageError

T = TypeVar("T")

CheckpointName = Annotated[
    str,
    tyro.conf.arg(
        help="The newest checkpoint (last), the best one by accuracy on the images of data.validation, or without "
        "any on the test images (best), or a step that is kept."
    ),
]
"""Which checkpoint of a run a command reads."""


def parse(
    kind: type[T],
    arguments: Sequence[str],
    command: str,
    description: str,
    default: T | None = None,
    short: Mapping[str, str] | None = None,
    shown: Sequence[str] = (),
) -> T:
    """Build ``kind`` from command line arguments.

    Args:
        kind: a dataclass; its fields are the options and their docstrings the help.
        arguments: what follows the command's name.
        command: the command's name.
        description: what ``--help`` says first.
        default: where options that are not given come from.
        short: short forms of options (``{"--epochs": "--train.epochs"}``).
        shown: the options that ``--help`` shows, where not all; ``--help-all`` shows all.

    Raises:
        UsageError: the arguments do not fit; one line says which and why.
        SystemExit: help was asked for and printed.
    """
    prog = f"locallearn {command}"
    short = short or {}
    arguments = [_long_form(argument, short) for argument in arguments]
    helps = {"-h", "--help", "--help-all"} & set(arguments)
    if default is None and not _required(kind):
        default = kind()
    if default is not None:
        default, arguments = with_components(default, [*arguments, "--help"] if helps else arguments)

    def call(words: Sequence[str]) -> T:
        if default is None:
            return tyro.cli(kind, prog=prog, description=description, args=list(words))
        return tyro.cli(kind, prog=prog, description=description, args=list(words), default=default)

    def help_text() -> str:
        with _captured() as (out, _), contextlib.suppress(SystemExit):
            call(["--help"])
        return out.getvalue()

    if helps:
        head, groups = helping.read(help_text())
        print(helping.render(head, groups, short, () if "--help-all" in helps else shown))
        raise SystemExit(0)
    with _captured() as (_, complaint):
        try:
            found = call(arguments)
            _check_countable(found)
            return found
        except SystemExit:
            pass
    missing = _missing(complaint.getvalue())
    told = f"{command}: {missing}" if missing else _explained(complaint.getvalue(), help_text, short)
    raise UsageError(f"{told}; see {prog} --help")


def _check_countable(options: Any) -> None:
    """Refuse whole numbers that no count of anything reaches; a seed is no count."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            _check_countable(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and number > LARGEST and field.name != "seed":
                expected = f"a whole number of at most {LARGEST:,}"
                raise ConfigError(f"--{field.name.replace('_', '-')}", number, expected)


def _required(kind: type) -> list[str]:
    """The fields that have no default."""
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def check_at_least(options: object, **least: int) -> None:
    """Refuse whole numbers that are too small, or larger than any count is; None is decided later.

    Raises:
        ConfigError: the message names the flag, the value and the least or largest one.
    """
    most = {"threads": MOST_THREADS, "image_size": MOST_PIXELS}
    for name, bound in least.items():
        value, largest = getattr(options, name), most.get(name, LARGEST)
        given = value if isinstance(value, tuple) else () if value is None else (value,)
        if any(number < bound for number in given):
            raise ConfigError(f"--{name.replace('_', '-')}", value, f"a whole number of at least {bound}")
        if any(number > largest for number in given):
            raise ConfigError(f"--{name.replace('_', '-')}", value, f"a whole number of at most {largest:,}")


def check_ending(option: str, file: str | None, *endings: str) -> None:
    """Refuse the name of a file of another kind, such as a run's own record.

    Raises:
        ConfigError: the message names the option, the file and the endings that are right.
    """
    if file is not None and Path(file).suffix.lower() not in endings:
        raise ConfigError(option, file, f"a file name ending in {' or '.join(endings)}")


def check_links(device_flops: float | None, **links: float | None) -> None:
    """Refuse ``--bandwidth`` and ``--latency`` where times are not predicted.

    Raises:
        UsageError: the message names the option.
    """
    for name, value in links.items():
        if device_flops is None and value is not None:
            raise UsageError(f"--{name} needs --device-flops, the operations a second of one device")


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """What the arguments give an option that decides the defaults of others; None where it is not there."""
    for argument, following in pairwise([*arguments, "--"]):
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
        if argument == name and not following.startswith("-"):
            return following
    return None


def recipe_name(arguments: Sequence[str], command: str, example: str) -> str | None:
    """The recipe that the arguments begin with; None where only help is asked for.

    Raises:
        UsageError: it is missing.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    if not {"-h", "--help", "--help-all"} & set(arguments):
        raise UsageError(f"{command}: RECIPE is missing; it comes first, as in: locallearn {example}")
    return None


def suggestions(typed: str, flags: Sequence[str], short: Mapping[str, str]) -> list[str]:
    """The options that ``typed`` may mean, whichever part of their dotted names it is near to; three at most.

    Args:
        typed: what was typed, with its dashes.
        flags: the options that there are.
        short: short forms, and the option that each stands for.
    """
    forms: dict[str, list[str]] = {}
    for flag in flags:
        parts = flag.lstrip("-").split(".")
        for i in range(len(parts)):
            forms.setdefault(".".join(parts[i:]), []).append(flag)
    for name, flag in short.items():
        forms.setdefault(name.lstrip("-"), []).insert(0, flag)
    whole = typed.lstrip("-").replace("_", "-")
    part, _, last = whole.rpartition(".")
    beside = {flag.lstrip("-").removeprefix(f"{part}."): [flag] for flag in flags if flag.startswith(f"--{part}.")}
    if _nearest(last, beside):  # of the part that was typed right
        return [beside[form][0] for form in _nearest(last, beside)][:3]
    near = [last] if last in forms else _nearest(whole, forms) or _nearest(last, forms)
    return list(dict.fromkeys(flag for form in near for flag in forms[form]))[:3]


def _nearest(typed: str, forms: Iterable[str]) -> list[str]:
    """The forms that are nearest to what was typed, the nearest first; none that is much farther than the first."""
    likeness = {form: difflib.SequenceMatcher(None, typed, form).ratio() for form in forms}
    best = max(likeness.values(), default=0)
    near = [form for form, ratio in likeness.items() if ratio >= max(0.75, best - 0.08)]
    return sorted(near, key=lambda form: -likeness[form])


@contextlib.contextmanager
def _captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """What is printed meanwhile, to both streams, as on a terminal that has tyro's box characters and no colours."""
    out, err = _Terminal(), _Terminal()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ |= {"COLUMNS": str(helping.WIDTH), "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


class _Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]


def _long_form(argument: str, short: Mapping[str, str]) -> str:
    name, equals, value = argument.partition("=")
    return short.get(name.replace("_", "-"), name) + equals + value


def _missing(box: str) -> str:
    """Tyro's complaint that arguments are missing, as their names; nothing where it complains of something else."""
    if "Missing from " not in box:
        return ""
    names = re.findall(r"^│ {5}(\S+)", box.partition("│ ─")[0], re.MULTILINE)
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"{listed} {'are' if len(names) > 1 else 'is'} missing"


def _explained(box: str, help_text: Callable[[], str], short: Mapping[str, str]) -> str:
    """Tyro's complaint as one sentence; options that do not exist with those that may have been meant."""
    message = _one_line(box)
    found = re.match(r"Unrecognized options: (.+)", message)
    if not found:
        return message
    unknown = [word for word in found[1].split(", ") if word.startswith("-")] or [found[1]]
    _, groups = helping.read(help_text())
    flags = [flag for group in groups for entry in group.entries for flag in entry.flags]
    near = suggestions(unknown[0], flags, short)
    hint = f". Did you mean {' or '.join(near)}?" if near else ""
    return f"unrecognized option {unknown[0]}{hint}"


def _one_line(box: str) -> str:
    """The message inside the box that tyro draws around an error, without its help text."""
    message = []
    for line in box.splitlines():
        text = line.strip().strip("│").strip()
        if text and set(text) <= {"─"}:
            break
        if text and not text.startswith(("╭", "╰")):
            message.append(text)
    return " ".join(message).rstrip(".")
