"""Start the processes of a run on this machine, for people without torchrun at hand."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from locallearn.runtime.parent import LAUNCHER, keep_nice

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

GRACE_SECONDS = 30.0
"""How long processes that were asked to end may take."""


def launch(command: Sequence[str], processes: int, restarts: int, say: Callable[[str], None]) -> int:
    """Run ``command`` in several processes until all have ended; they find each other as under torchrun.

    Ctrl-C asks all of them to stop; a second one kills them. They also end when this process is killed.

    Args:
        command: what follows ``python -m locallearn``.
        processes: how many.
        restarts: how often all are started again after one has died; not where it would fail again, as where a loss
            became infinite.
        say: is told about restarts.

    Returns:
        The exit code: 0, or the first one that was not.
    """
    from locallearn.runtime.restarts import failed_for_good

    code = 0
    for attempt in range(restarts + 1):
        store = open_store()  # a new one, since the old one's entries are stale
        crew = Processes([_start(command, rank, processes, attempt, store.port) for rank in range(processes)])
        code = crew.wait()
        if code == 0 or crew.interrupted or attempt == restarts or failed_for_good(store, attempt):
            break
        say(f"{crew.first_failure}; starting all again ({attempt + 1} of {restarts})")
    return code if code >= 0 else 1


def open_store() -> TCPStore:
    """Where the processes of a run find each other; it lives in the process that starts them.

    It is told where to listen, for by itself it listens to every network that this machine is in.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())


def rank_environment(rank: int, processes: int, port: int, attempt: int = 0) -> dict[str, str]:
    """What torchrun tells a process of one machine about itself and about the others."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RESTART_COUNT": attempt,
        # where gloo listens: by itself at the address of this machine's name
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or ("lo0" if sys.platform == "darwin" else "lo"),
    }
    return {name: str(value) for name, value in names.items()}


def _start(command: Sequence[str], rank: int, processes: int, attempt: int, port: int) -> subprocess.Popen[bytes]:
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ, **rank_environment(rank, processes, port, attempt)}
    environment[LAUNCHER] = str(os.getpid())
    # a session of its own: Ctrl-C reaches this process alone, which passes it on
    process = subprocess.Popen(
        [sys.executable, "-m", "locallearn", *command], env=environment, start_new_session=True
    )
    keep_nice(process.pid)
    return process


class Processes:
    """Processes that end together."""

    def __init__(self, crew: list[subprocess.Popen[bytes]]) -> None:
        self.crew = crew
        self.interrupted = False
        self.first_failure = ""
        self._code = 0

    def wait(self) -> int:
        """Wait for all, and end the others once one has failed."""
        previous = {n: signal.signal(n, self._interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._wait()
        finally:
            for process in self.crew:
                process.kill()
                process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _wait(self) -> int:
        end = float("inf")
        while any(process.poll() is None for process in self.crew) and time.monotonic() < end:
            time.sleep(0.05)
            if not self.first_failure:
                self._look()
                end = time.monotonic() + GRACE_SECONDS if self.first_failure else end
        self._look()
        return self._code

    def _look(self) -> None:
        """Note who failed first; of several, one that was killed is the cause."""
        codes = [process.poll() for process in self.crew]  # of all: one that lives hides no other
        failed = [(code, rank) for rank, code in enumerate(codes) if code]
        if failed and not self.first_failure:
            self._code, rank = min(failed)
            how = f"was killed by signal {-self._code}" if self._code < 0 else f"ended with exit code {self._code}"
            self.first_failure = f"process {rank} {how}"

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        for process in self.crew:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if self.interrupted else number)
        self.interrupted = True
