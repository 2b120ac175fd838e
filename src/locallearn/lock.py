"""Lock files: nobody trains the same run or cell twice at once.

A file is locked with ``flock``. The system ends the lock with the last process that holds it, whatever killed that,
so nobody has to find out whether a lock is stale. A worker that a queue starts inherits its lock, and keeps its cell
when it outlives the queue. The process id in the file is for people.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import IO

_PATIENCE = 1.0
"""Who looks whether a lock is held has it for a moment: so long a lock is tried again [s]."""


def acquire(path: Path, patience: float = 0.0) -> IO[str] | None:
    """Lock a file, made where it is missing; None where a process holds it. Closing the file ends the lock.

    Args:
        path: the file.
        patience: how long to try again [s].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return _lock(path, fcntl.LOCK_EX, patience)


def acquire_run(run: Path) -> IO[str] | None:
    """Lock a run folder that is there, for the process that trains it; None where another one does."""
    lock = _lock(run_lock(run), fcntl.LOCK_EX, _PATIENCE)
    if lock is not None:
        name_holder(lock, os.getpid())
    return lock


def release(lock: IO[str]) -> None:
    """End a lock, also for processes that were forked meanwhile and have the file open, as a loader's workers do."""
    with contextlib.suppress(OSError):  # the file system has no locks
        fcntl.flock(lock, fcntl.LOCK_UN)
    lock.close()


def run_lock(run: Path) -> Path:
    """The lock file of a run folder."""
    return run / ".lock"


def name_holder(lock: IO[str], process: int) -> None:
    """Write down which process holds the lock."""
    with contextlib.suppress(OSError):  # a full disk; the lock is held all the same
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), str(process).encode())


def holder(path: Path) -> str:
    """The process that was written down last."""
    return path.read_text(encoding="utf-8", errors="replace").strip()


def is_held(path: Path) -> bool:
    """Whether a process holds this lock now."""
    if not path.is_file():
        return False
    lock = _lock(path, fcntl.LOCK_SH, 0.0)
    if lock is None:
        return True
    lock.close()
    return False


def _lock(path: Path, kind: int, patience: float) -> IO[str] | None:
    # a link or a pipe in a folder from elsewhere is neither followed nor waited for
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    lock = os.fdopen(number, "a+", encoding="utf-8")
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= end:
                lock.close()
                return None
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                lock.close()
                raise
            return lock  # the file system has no locks
