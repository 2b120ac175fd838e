"""Whether all processes of a mesh see the same run folder: each of them writes its part of a checkpoint there."""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path

from locallearn.errors import UsageError
from locallearn.runtime.world import Alone, ProcessWorld

_PATIENCE = 5.0
"""How long storage of a network may take to show a new file [s]."""


def check_shared(folder: Path, world: Alone | ProcessWorld) -> None:
    """Make sure that every process sees what the leader writes; all of them call this together.

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
