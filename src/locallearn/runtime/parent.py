"""A process of a run is as nice as the one that started it, and ends with it, however that ended."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

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


def keep_nice(child: int) -> None:
    """Put a process in a session of its own as far behind others as this one is.

    Linux with autogroups shares processors out by session: what ``nice`` set counts inside a session alone, and a new
    one begins as nobody's inferior.

    Args:
        child: number of the process.
    """
    nice, group = os.getpriority(os.PRIO_PROCESS, 0), Path(f"/proc/{child}/autogroup")
    for _ in range(5 if nice > 0 else 0):
        try:
            group.write_text(str(nice))
            return
        except BlockingIOError:  # one such change in a tenth of a second is let through
            time.sleep(0.1)
        except OSError:  # this system has no such groups
            return
