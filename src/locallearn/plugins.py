"""Files of the user's own that register models, heads, objectives, methods and data sets.

``locallearn COMMAND --plugin my_file.py`` imports a file before the command looks anything up, and so does
``LOCALLEARN_PLUGINS`` (file names with the system's path separator between). Processes that a command starts inherit
them; a run's ``config.toml`` names them, so that a resume finds them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from locallearn.errors import LocalLearnError, UsageError

VARIABLE = "LOCALLEARN_PLUGINS"

_loaded: dict[Path, str] = {}


def load(files: Iterable[str | Path]) -> None:
    """Import files of the user's own, each once, here and in processes that are started from now on.

    Raises:
        UsageError: a file is not there, or fails; one line says where.
    """
    for file in files:
        path = Path(file).expanduser().resolve()
        if path not in _loaded:
            _import(path)
            os.environ[VARIABLE] = os.pathsep.join(map(str, _loaded))


def load_named() -> bool:
    """Import what ``LOCALLEARN_PLUGINS`` names and is not imported yet; tell whether there was anything."""
    before = len(_loaded)
    load(file for file in os.environ.get(VARIABLE, "").split(os.pathsep) if file)
    return len(_loaded) > before


def load_of_run(files: Iterable[str], run: Path) -> None:
    """Import the plugins that a run was started with; one that has moved may be named anew by ``--plugin``.

    A folder that came from elsewhere brings no code along: files inside the run are not imported.

    Raises:
        UsageError: a file is not there any more, or lies in the run's folder.
    """
    for file in files:
        path = Path(file)
        if path.name in {known.name for known in _loaded}:
            continue
        if run.resolve() in path.resolve().parents:
            raise UsageError(f"plugin {path} lies in the run's own folder; name it with --plugin if you trust it")
        if not path.is_file():
            raise UsageError(f"plugin {path} of {run} is not there; name its place with --plugin")
        load([path])


def loaded() -> tuple[str, ...]:
    """Absolute names of the files that were imported, in order."""
    return tuple(map(str, _loaded))


def _import(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"--plugin: {path} is not a file")
    name = f"locallearn_plugin_{len(_loaded)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    _loaded[path] = name  # before it runs: what it looks up must not import it again
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name], _loaded[path]
        if isinstance(error, LocalLearnError) or not isinstance(error, Exception):
            raise
        raise UsageError(f"--plugin: {path} fails{_line_in(path, error)}: {type(error).__name__}: {error}") from error


def _line_in(path: Path, error: Exception) -> str:
    """The last line of the file that was running, as a phrase."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" in line {lines[-1]}" if lines else ""
