"""A run's folder that is one training's alone, and that all its processes see."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from locallearn.errors import UsageError
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training.record import RunFolder

_PATIENCE = 5.0
"""How long storage of a network may take to show a new file [s]."""


@contextlib.contextmanager
def one_writer(folder: RunFolder, world: Alone | ProcessWorld) -> Iterator[None]:
    """Keep others from training a run while this lasts; the leader does so for all processes, which enter together.

    Raises:
        UsageError: another process trains it, or some processes see another folder.
        DiskError: the disk is full or broken.
    """
    if world.leader:
        folder.claim()
    try:
        check_shared(folder.path, world)
        yield
    finally:
        folder.release()


def check_shared(folder: Path, world: Alone | ProcessWorld) -> None:
    """Make sure that every process sees what the leader writes, for each writes its part of a checkpoint there.

    All of them call this together.

    Args:
        folder: of the run; on the leader it is there.
        world: the processes.

    Raises:
        UsageError: some do not; the message names them. Every process raises it.
    """
    if isinstance(world, Alone):
        return
    mark = folder / world.share(f".shared-{secrets.token_hex(8)}.tmp")
    try:
        if world.leader:
            mark.touch()
        world.sync()
        own = "" if _appears(mark) else f"rank {world.rank} on {socket.gethostname()}"
        blind = world.share(", ".join(filter(None, world.collect(own))))
    finally:
        if world.leader:
            mark.unlink(missing_ok=True)
    if blind:
        raise UsageError(
            f"run: {folder} of the first process is not seen by {blind}; expected a folder that all processes share "
            "(the same path, on storage that all hosts mount)"
        )


def _appears(mark: Path) -> bool:
    end = time.monotonic() + _PATIENCE
    while not (seen := mark.exists()) and time.monotonic() < end:
        time.sleep(0.2)
    return seen
