"""``locallearn COMMAND``: picks the command and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

import locallearn
from locallearn import plugins
from locallearn.cli import houses
from locallearn.errors import LocalLearnError, UsageError, one_line
from locallearn.files import cannot_use
from locallearn.runtime.parent import end_with_launcher

COMMANDS = {
    "demo": "train e2e, DGL and GN-DGL on the embedded digits and compare them",
    "train": "train a recipe, or resume a run",
    "verify": "check a configuration on this machine: gradients, repeatability, resume",
    "evaluate": "evaluate a run on its test images",
    "predict": "classify a folder of images with a run",
    "probe": "measure what every depth of a run knows, by classifiers on its frozen features",
    "embed": "write the features of a folder of images",
    "pack": "pack images, so that a set that is larger than memory can be read",
    "export": "write a run's network without auxiliary heads",
    "report": "write one HTML report of one or more runs",
    "cost": "count what every node computes, holds and sends, and predict times",
    "plan": "propose K, G, cuts and head for some devices and a memory limit",
    "recipes": "list the recipes",
}


STDOUT = "standard output"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 on success, 2 on a wrong call, 1 on a failed run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(arguments)
        _flush()  # here, where a full disk or a reader that has gone is told in one line
        return code
    except LocalLearnError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:  # the reader of our output has gone, as in `locallearn recipes | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.filename is None:  # files have names, so it is what a command prints
            error.filename = STDOUT
        found = cannot_use(error)
        return _fail(found, found.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        return _fail(f"there is not enough memory for this: {error}", 1)


def _fail(error: object, code: int) -> int:
    if _is_first_to_fail(isinstance(error, LocalLearnError) and not error.passing):
        print(f"locallearn: {one_line(error)}", file=sys.stderr)
    return code


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # else Python tries again at its end, and complains
        error.filename = STDOUT
        raise


def _is_of_memory(error: Exception) -> bool:
    """Whether memory was asked for that is not there; torch has no error of its own for that of a CPU."""
    text = str(error)
    known = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "integer multiplication overflow")
    return isinstance(error, MemoryError) or any(words in text for words in known) or "Storage size calc" in text


def _is_first_to_fail(for_good: bool) -> bool:
    """Whether this process reports an error: of the processes of a run only one does."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from locallearn.runtime.restarts import first_to_fail

    return first_to_fail(for_good)


def _run(arguments: list[str]) -> int:
    arguments = _load_plugins(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"locallearn {locallearn.__version__}")
        return 0
    command = arguments[0]
    modules = {name: f"locallearn.cli.{name}_command" for name in COMMANDS}
    modules |= {name: module for name, (module, _) in houses.commands().items()}
    if command not in modules:
        raise UsageError(f"{command!r} is not a command; expected one of {', '.join(modules)}")
    module = importlib.import_module(modules[command])  # only now: --help and a wrong command need no torch
    try:
        return module.run(arguments[1:])
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _load_plugins(arguments: list[str]) -> list[str]:
    """Import every ``--plugin FILE``, and return the arguments without them."""
    left, files = [], []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--plugin":
            left.append(argument)
            continue
        file = value if equals else next(rest, None)
        if not file:
            raise UsageError("--plugin: the name of a Python file is missing")
        files.append(file)
    plugins.load(files)
    return left


def commands() -> dict[str, str]:
    """Every command by name, those of the houses that are installed too, and what it does in a line."""
    return COMMANDS | {name: what for name, (_, what) in houses.commands().items()}


def _usage() -> str:
    lines = ["usage: locallearn COMMAND [options]", "", "Local learning for PyTorch.", "", "commands:"]
    lines += [f"  {name:10} {what}" for name, what in commands().items()]
    lines += [
        "",
        "Every command takes --plugin FILE: Python of your own that registers models, heads, objectives, methods or",
        "data sets.",
        "locallearn COMMAND --help tells a command's options, with units and defaults.",
    ]
    return "\n".join(lines)


def _present_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # somebody has removed it
        return ""


def program() -> None:
    """Run the command and leave the program."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character gets a spelling of it
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 and not stream.isatty() else "backslashreplace")
    if not {"", os.curdir, _present_folder()} & set(sys.path):
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # nor do the processes that it starts import files from there
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(main())
    end_with_launcher()
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code:  # a thread may wait for a peer that is gone, and would hold up the ordinary end
        os._exit(code)


if __name__ == "__main__":
    program()
