"""Processes that train together and do what they are told: run some steps, tell how long each took.

The process that measures starts several crews and gives one after the other a turn; those that have none wait for a
word and take no time. A crew ends with the process that started it, and whoever does not answer in time is an error.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NamedTuple

from locallearn.bench.trainers import TimedJob
from locallearn.errors import LocalLearnError
from locallearn.runtime.launch import open_store, rank_environment


class Host(NamedTuple):
    """Where a process runs.

    Attributes:
        prefix: what its command begins with (``ip netns exec NAME``).
        environment: what it is told beside its rank.
    """

    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


class Crew:
    """Processes that run one job.

    Args:
        name: how messages name it.
        job: what they train.
        timeout: how long an answer may take [s].
        hosts: where each process runs; by default all of them here.

    Raises:
        LocalLearnError: one of them fails.
    """

    def __init__(self, name: str, job: TimedJob, timeout: float, hosts: Sequence[Host] | None = None) -> None:
        self.name, self.job, self.timeout = name, job, timeout
        self.size = job.config.mesh.size
        self._store = open_store() if self.size > 1 and hosts is None else None
        self._errors = [tempfile.TemporaryFile() for _ in range(self.size)]  # noqa: SIM115 (closed in close)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        hosts = hosts or [Host()] * self.size
        try:
            for rank, host in enumerate(hosts):
                self._start(rank, host)
        except BaseException:
            self.close()
            raise

    def _start(self, rank: int, host: Host) -> None:
        ours, theirs = Pipe()
        port = self._store.port if self._store is not None else 0
        threads = {"OMP_NUM_THREADS": str(self.job.setting.threads or 1)}
        environment = {**os.environ, **threads, **rank_environment(rank, self.size, port), **host.environment}
        command = [*host.prefix, sys.executable, "-m", "locallearn.bench.member", str(theirs.fileno())]
        process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors[rank],
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends them
        )
        theirs.close()
        self._processes.append(process)
        self._connections.append(ours)
        ours.send(self.job)

    def ask(self, command: str, *arguments: Any, ranks: Sequence[int] | None = None) -> list[Any]:
        """Give a command to some processes, by default all, and return their answers in that order.

        Raises:
            LocalLearnError: one of them failed, or did not answer in time.
        """
        ranks = range(self.size) if ranks is None else ranks
        for rank in ranks:
            with contextlib.suppress(OSError):  # it has ended; why is found when its answer is awaited
                self._connections[rank].send((command, arguments))
        return self.answers(ranks)

    def answers(self, ranks: Sequence[int] | None = None) -> list[Any]:
        """Wait for an answer of every process; the first one tells that it is ready."""
        awaited = {self._connections[rank]: rank for rank in (range(self.size) if ranks is None else ranks)}
        order, found = list(awaited.values()), dict[int, Any]()
        end = time.monotonic() + self.timeout
        while awaited:
            ready = wait(list(awaited), max(0.0, end - time.monotonic()))
            if not ready:
                raise self._failure(min(awaited.values()), f"did not answer in {self.timeout:g} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                rank = awaited.pop(connection)
                found[rank] = self._answer(connection, rank)
        return [found[rank] for rank in order]

    def _answer(self, connection: Connection, rank: int) -> Any:
        try:
            good, value = connection.recv()
        except (EOFError, OSError):
            raise self._failure(rank, self._last_words(rank)) from None
        if not good:
            raise self._failure(rank, value)
        return value

    def _last_words(self, rank: int) -> str:
        """Why a process ended without a word."""
        code = self._processes[rank].wait()
        self._errors[rank].seek(0)
        lines = self._errors[rank].read().decode(errors="replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how} ({lines[-1]})" if lines else how

    def _failure(self, rank: int, reason: str) -> LocalLearnError:
        return LocalLearnError(f"{self.name}, process {rank + 1} of {self.size}: {reason}")

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        for each in (*self._connections, *self._errors):
            each.close()
