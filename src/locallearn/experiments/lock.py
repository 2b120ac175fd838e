"""Lock files, one a cell, so that two queues never train the same cell.

A file is locked with ``flock`` before a worker starts, and the worker inherits the lock. The system ends it with the
last process that holds it, whatever killed that; so nobody has to find out whether a lock is stale, and a worker that
outlives its queue keeps its cell until it has stopped. The process id in the file is for people.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def acquire(path: Path) -> IO[str] | None:
    """Lock a file, made where it is missing; None where a process holds it. Closing the file ends the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held as long as the worker lives)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def name_holder(lock: IO[str], process: int) -> None:
    """Write down which process holds the lock."""
    lock.truncate(0)
    lock.write(str(process))
    lock.flush()


def holder(path: Path) -> str:
    """The process that was written down last."""
    return path.read_text(encoding="utf-8").strip()


def is_held(path: Path) -> bool:
    """Whether a process holds this lock now."""
    if not path.is_file():
        return False
    lock = acquire(path)
    if lock is None:
        return True
    lock.close()
    return False
