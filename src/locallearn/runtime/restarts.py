"""Failures that starting again would repeat, as processes tell their launcher."""

from __future__ import annotations

import datetime
import os
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from locallearn.errors import LocalLearnError

T = TypeVar("T")

_FOR_GOOD = "locallearn/for-good"


def attempt_number() -> str:
    """How often torchrun (or our own launcher) has started this run's processes again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def first_to_fail(for_good: bool) -> bool:
    """Whether no other process of this run has reported a failure; one that loses a peer is rarely the cause.

    Args:
        for_good: the failure would come again, so that nobody need start the processes anew.
    """
    store = _launchers_store()
    if store is None:
        return True
    try:
        if for_good:
            store.set(f"{_FOR_GOOD}/{attempt_number()}", "1")
        return store.add(f"locallearn/failures/{attempt_number()}", 1) == 1
    except RuntimeError:  # the process that has the store is gone
        return True


def check_not_in_vain() -> None:
    """Refuse to start again what failed for a reason that is still there; torchrun starts processes whatever it was.

    Raises:
        LocalLearnError: the attempt before this one failed for good.
    """
    store, before = _launchers_store(), int(attempt_number()) - 1
    if before >= 0 and store is not None and failed_for_good(store, before):
        raise LocalLearnError("not started again: what failed would fail again")


def failed_for_good(store: TCPStore, attempt: int) -> bool:
    """Whether a process of this attempt told that its failure would come again."""
    return store.check([f"{_FOR_GOOD}/{attempt}"])


def _launchers_store() -> TCPStore | None:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_PORT" not in os.environ:
        return None
    try:
        address, port, limit = (
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            datetime.timedelta(seconds=2),
        )
        return within(2, lambda: TCPStore(address, port, timeout=limit))
    except (RuntimeError, ValueError):  # the process that has the store is gone
        return None


def within(seconds: float, make: Callable[[], T]) -> T:
    """What ``make`` returns; torch itself waits for ever for a server that takes a connection and says nothing.

    Raises:
        RuntimeError: it took longer, or failed.
    """
    found: queue.Queue[T | BaseException] = queue.Queue()

    def run() -> None:
        try:
            found.put(make())
        except BaseException as error:
            found.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        value = found.get(timeout=seconds + 1)  # torch's own limit, and the reason that it knows, come first
    except queue.Empty:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RuntimeError(f"no answer from {place}, where the processes meet") from None
    if isinstance(value, BaseException):
        raise value
    return value
