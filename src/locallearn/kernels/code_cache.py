"""Compiled code in the user's cache folder: nobody else's, whole, and of the compiler that is there now."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from locallearn.files import only_ours, own_folder

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "conv.c", "norm.c"))
_COMPILE = ("-O3", "-fopenmp", "-fPIC", "-c")  # linked without OpenMP: torch's own is there, with its threads
_SECONDS = 120


class UnavailableError(Exception):
    """Why there is no compiled code."""


def library(flags: tuple[str, ...]) -> ctypes.CDLL:
    """The code that these flags make of the sources, compiled where it is not kept yet.

    The name of what is kept holds what it was made from (sources, flags, the compiler and its version) and a checksum
    of itself; a file that is damaged, or that others could have written, is made anew.

    Raises:
        UnavailableError: it cannot be compiled, kept or loaded.
    """
    command = compiler()
    try:
        folder = _folder()
        key = _key(command, flags)
        found = next((path for path in sorted(folder.glob(f"native-{key}-*.so")) if _is_whole(path)), None)
        return ctypes.CDLL(str(found or _compiled(command, flags, folder, key)), mode=os.RTLD_NOW)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: nobody has a home here
        raise UnavailableError(f"{shlex.join(command)}: {_last_line(error)}") from None


def compiler() -> tuple[str, ...]:
    """The C compiler with its own arguments: ``$CC``, else gcc or cc.

    Raises:
        UnavailableError: there is none.
    """
    try:
        command = tuple(shlex.split(os.environ.get("CC", "")))
    except ValueError as error:
        raise UnavailableError(f"CC is {os.environ['CC']!r}: {error}") from None
    found = shutil.which("gcc") or shutil.which("cc")
    if not command and found is None:
        raise UnavailableError("no C compiler: neither CC is set nor gcc installed")
    return command or (str(found),)


def _folder() -> Path:
    base = own_folder("XDG_CACHE_HOME", ".cache") / "locallearn"
    base.mkdir(parents=True, exist_ok=True)
    folder = base / "kernels"
    folder.mkdir(exist_ok=True, mode=0o700)
    if folder.is_symlink() or not only_ours(folder.stat()):
        raise OSError(
            f"{folder} belongs to somebody else, or others can write to it; expected a folder like chmod 700"
        )
    return folder


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    return _run(*command, "--version")


def _key(command: tuple[str, ...], flags: tuple[str, ...]) -> str:
    sources = b"".join(path.read_bytes() for path in _SOURCES)
    made_from = "\0".join((*command, _version(command), *flags, *_COMPILE, torch.__version__)).encode() + sources
    return hashlib.sha256(made_from).hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether it is a file of ours with the content that its name tells; a damaged one can end whoever loads it."""
    try:
        return only_ours(path.lstat()) and path.stem.endswith(f"-{_checksum(path)}")
    except OSError:
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


@functools.cache
def _tell(folder: Path) -> None:
    """Once a process."""
    told = f"locallearn: compiling kernels for this processor, once; they are kept in {folder}"
    print(told, file=sys.stderr, flush=True)


def _compiled(command: tuple[str, ...], flags: tuple[str, ...], folder: Path, key: str) -> Path:
    _tell(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = [Path(scratch, path.stem).with_suffix(".o") for path in _SOURCES if path.suffix == ".c"]
        for made in objects:
            _run(*command, *_COMPILE, *flags, Path(__file__).with_name(f"{made.stem}.c"), "-o", made)
        linked = Path(scratch, "native.so")
        _run(*command, "-shared", *objects, "-o", linked)
        linked.chmod(0o700)
        target = linked.replace(folder / f"native-{key}-{_checksum(linked)}.so")
    for damaged in folder.glob(f"native-{key}-*.so"):
        if not _is_whole(damaged):
            damaged.unlink(missing_ok=True)
    return target


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout


def _last_line(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    return text.strip().splitlines()[-1]
