"""A process of a run ends with the one that started it, however that ended: nobody would stop it any more."""

from __future__ import annotations

import os
import threading
import time

LAUNCHER = "LOCALLEARN_LAUNCHER"
"""Holds the number of the process that started this one for a run."""

_LOOK_SECONDS = 0.3


def end_with_launcher() -> None:
    """From now on, end this process when its launcher has gone: ours, or torchrun on this machine.

    One that was started in another way, as by hand on each of several machines, may outlive who started it.
    """
    if LAUNCHER in os.environ:
        end_with(int(os.environ[LAUNCHER]))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())


def end_with(parent: int) -> None:
    """From now on, end this process when its parent has gone: a killed one can tell nobody, so look."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
