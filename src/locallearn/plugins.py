"""Files of the user's own that register models, heads, objectives, methods, data sets, optimizers and schedules.

``locallearn COMMAND --plugin my_file.py`` imports a file before the command looks anything up, and so does
``LOCALLEARN_PLUGINS`` (file names with the system's path separator between). Processes that a command starts inherit
them. A run's ``config.toml`` names them, so that a resume finds them; but a file's word is not the user's, see
``load_of``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from locallearn import trust
from locallearn.errors import LocalLearnError, UsageError

VARIABLE = "LOCALLEARN_PLUGINS"
IMPORTS = "LOCALLEARN_IMPORTS"

_loaded: dict[Path, str] = {}


def load(files: Iterable[str | Path]) -> None:
    """Import files that the user names, each once, here and in processes that are started from now on.

    What he named is noted (``locallearn.trust``), so that a run that names the same file finds it.

    Raises:
        UsageError: a file is not there, or fails; one line says where.
    """
    for file in files:
        path = _place(file)
        if path not in _loaded:
            content = _read(path)
            trust.remember(path, content)
            _import(path, content)


@contextlib.contextmanager
def scope() -> Iterator[None]:
    """Forget at the end which plugins were imported within, so that they can be imported anew."""
    before = dict(_loaded)
    try:
        yield
    finally:
        _loaded.clear()
        _loaded.update(before)


def load_named() -> bool:
    """Import what ``LOCALLEARN_PLUGINS`` names and is not imported yet; tell whether there was anything."""
    before = len(_loaded)
    load(file for file in os.environ.get(VARIABLE, "").split(os.pathsep) if file)
    return len(_loaded) > before


def load_of(files: Iterable[str], owner: str) -> None:
    """Import the plugins that a configuration names, as far as the user has named them himself.

    They are those of this process, or files that he once named on this machine and that have not changed since. One
    that has moved may be named anew by ``--plugin``.

    Args:
        files: as the configuration names them.
        owner: whose configuration it is, for messages.

    Raises:
        UsageError: the user has never named a file, or what is in it now; or it is not there any more.
    """
    load_named()
    for file in files:
        path = _place(file)
        if path.name in {known.name for known in _loaded}:
            continue
        if not path.is_file():
            raise UsageError(f"plugin {file} of {owner} is not there; name its place with --plugin")
        content = _read(path)
        if not trust.is_remembered(path, content):
            raise UsageError(
                f"plugin {file} of {owner} is code that you have not named here, or that has changed since; "
                f"look at it, and if you trust it name it with --plugin {path}"
            )
        _import(path, content)


def allow_import(path: str) -> None:
    """Let ``imported`` import ``package.module.Class``, here and in processes that are started from now on.

    For names that the user wrote on the command line; one that only a file holds must not bring code along.
    """
    if "." not in path:
        return
    os.environ[IMPORTS] = os.pathsep.join(dict.fromkeys([*_allowed(), path]))


def _allowed() -> list[str]:
    return [path for path in os.environ.get(IMPORTS, "").split(os.pathsep) if path]


def imported(path: str, option: str) -> Any:
    """The class ``package.module.Class``, of a module that is imported already or that the user named.

    Args:
        path: the class.
        option: that names it, for messages (``"optimizer.name"``).

    Raises:
        UsageError: it is not there, or nobody but a file names it.
    """
    place, _, name = path.rpartition(".")
    if place not in sys.modules and path not in _allowed():
        raise UsageError(
            f"{option}: {path} is not imported only because a file names it; "
            f"write --{option} {path} as well, or in Python import {place}"
        )
    try:
        return getattr(importlib.import_module(place), name)
    except Exception as error:
        raise UsageError(f"{option}: {path} cannot be imported: {type(error).__name__}: {error}") from None


def loaded() -> tuple[str, ...]:
    """Absolute names of the files that were imported, in order."""
    return tuple(map(str, _loaded))


def _place(file: str | Path) -> Path:
    try:
        return Path(file).expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:  # an endless link, a NUL, the home of nobody
        raise UsageError(f"--plugin: {str(file)!r} is no name of a file: {error}") from None


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"--plugin: {path} is not a file")
    if path.suffix != ".py":
        raise UsageError(f"--plugin: {path} is not a Python file (.py)")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"--plugin: {path} cannot be read: {error.strerror}") from None


def _import(path: Path, content: bytes) -> None:
    """Import a file as it was read: neither what it is by now, nor compiled code that lies beside it."""
    name = f"locallearn_plugin_{len(_loaded)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    _loaded[path] = name  # before it runs: what it looks up must not import it again
    try:
        exec(compile(content, path, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        del sys.modules[name], _loaded[path]
        if isinstance(error, LocalLearnError) or not isinstance(error, Exception):
            raise
        raise UsageError(f"--plugin: {path} fails{_line_in(path, error)}: {type(error).__name__}: {error}") from error
    os.environ[VARIABLE] = os.pathsep.join(map(str, _loaded))


def _line_in(path: Path, error: Exception) -> str:
    """The last line of the file that was running, as a phrase."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" in line {lines[-1]}" if lines else ""
