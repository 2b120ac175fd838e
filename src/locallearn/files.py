"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from locallearn.errors import DiskError, LocalLearnError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""The path was right, and the disk is not: the same command may work later."""
_LEFTOVER = re.compile(r"\.(\d+)(?:-\d+)?\.tmp")
_numbers = itertools.count()
_being_written: set[Path] = set()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write under, with the ending of ``path``; it takes the place of ``path`` once it is on the disk.

    Where writing fails, ``path`` is as it was. A new file has the permissions that the umask leaves. What a process
    that was killed left of the same file goes first.

    Raises:
        UsageError: ``path`` cannot be written there; the message names it and the reason.
        DiskError: the disk is full or broken.
    """
    folder: Path | None = None
    try:
        check_replaceable(path)
        for leftover in path.parent.glob(f".{glob.escape(path.name[:40])}.*.tmp"):
            _remove_if_dead(leftover)
        folder = path.with_name(f".{path.name[:40]}.{os.getpid()}-{next(_numbers)}.tmp")
        _being_written.add(folder)
        folder.mkdir()
        temporary = folder / path.name
        yield temporary
        temporary.chmod(folder.stat().st_mode & 0o666)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except Exception as error:
        found = as_os_error(error)
        if found is None or _is_of_another_file(found, path, folder):
            raise
        raise cannot_write(path, found) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _being_written.discard(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file by way of ``replacing``; names of files that are no UTF-8 keep their bytes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of something that is none.

    Raises:
        OSError: a folder, a device or another thing that is no file is there.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; expected a file name", str(path))
    if path.parent.resolve() == Path("/dev") or (path.exists() and not path.is_file()):
        raise FileExistsError(errno.EEXIST, "it is there, and no file", str(path))


def check_readable(path: Path) -> None:
    """Refuse to open a pipe or a device: the other end may never come, or what it gives never end.

    Raises:
        OSError: one is there.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no file", str(path))


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, for good.

    Raises:
        UsageError: it cannot be made; the message names it and the reason.
        DiskError: the disk is full or broken.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _flush(folder.parent)
    except (OSError, ValueError) as error:
        found = as_os_error(error)
        if found is None:
            raise
        raise cannot_write(path, found) from None


def cannot_write(path: Path, error: OSError) -> LocalLearnError:
    """What to raise where a file cannot be written: one line that names it and the reason."""
    kind = DiskError if error.errno in _FULL else UsageError
    return kind(f"{path}: cannot be written ({error.strerror or error})")


def cannot_use(error: OSError) -> LocalLearnError:
    """What to tell of a file whose error nobody saw coming."""
    kind = DiskError if error.errno in _FULL or error.filename is None else UsageError
    reason = error.strerror or str(error)
    return kind(f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason)


def sweep(folder: Path, all_of_them: bool = False) -> None:
    """Remove what processes that were killed left of files that they were writing in a folder.

    Args:
        folder: where.
        all_of_them: nobody else writes there now, so that nothing need be kept for a process that lives.
    """
    for leftover in folder.glob(".*.tmp"):
        _remove_if_dead(leftover, all_of_them)


_LONGEST = 60
"""Length of a folder's name in which names of sockets, of at most 107 bytes, have room."""


def short_temporary_folder() -> str:
    """A folder for sockets: the one for temporary files, or where that has a long name another one.

    Processes that talk over sockets cannot be started from a TMPDIR of more than about 90 bytes; Python's own modules
    and the processes to come are told of the shorter one, too.

    Raises:
        UsageError: there is none.
    """
    folders = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    for folder in folders:
        if folder and len(os.fsencode(folder)) <= _LONGEST and os.access(folder, os.W_OK | os.X_OK):
            if folder != folders[0]:
                tempfile.tempdir = os.environ["TMPDIR"] = folder
            return folder
    raise UsageError(
        f"TMPDIR: {folders[0]!r} is not valid; expected a folder of at most {_LONGEST} bytes for sockets"
    )


def remove(path: Path) -> None:
    """Remove a file or a folder with everything in it; a link goes, and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_if_dead(leftover: Path, surely: bool = False) -> None:
    found = _LEFTOVER.search(leftover.name)
    if found is None or leftover in _being_written:
        return
    if surely or not _lives(int(found[1])):
        with contextlib.suppress(OSError):
            remove(leftover)


def _lives(process: int) -> bool:
    """Whether there is another process of this number; ours knows what it is writing."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return process != os.getpid()


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot flush a folder
            raise
    finally:
        os.close(number)


def as_os_error(error: Exception) -> OSError | None:
    """The system's error in an exception; safetensors wraps it into text, and Python refuses some names itself."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return OSError(errno.EILSEQ, "there are characters that UTF-8 does not have")
    if "null byte" in str(error):
        return OSError(errno.EINVAL, "no file can have this name")
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _is_of_another_file(error: OSError, path: Path, folder: Path | None) -> bool:
    """Whether it is about what the caller reads meanwhile."""
    if error.filename is None:
        return False
    name = os.fsdecode(error.filename)
    return name not in (str(path), str(path.parent)) and not (folder and name.startswith(str(folder)))


def own_folder(variable: str, usual: str) -> Path:
    """A folder of this user's: the one that an XDG variable names, else one in the home folder.

    Names that depend on the present folder do not count: whoever made that folder could have put files there.

    Args:
        variable: such as ``XDG_CACHE_HOME``.
        usual: relative to the home folder.

    Raises:
        RuntimeError: nobody has a home here.
    """
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():
        return named
    home = Path.home()
    if not home.is_absolute():
        raise RuntimeError(f"{home} is no home folder; expected HOME to begin with /")
    return home / usual


def only_ours(status: os.stat_result) -> bool:
    """Whether a regular file or a folder belongs to this user, and nobody else can write to it."""
    kind = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return kind and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def readable(name: str) -> str:
    """A file's name as text that can be printed and written: bytes that are no UTF-8 become ``\\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
