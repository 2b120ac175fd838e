"""A queue of cells that are trained in processes of their own, and that survives whatever kills it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from locallearn.lock import acquire, holder, name_holder
from locallearn.runtime.parent import keep_nice
from locallearn.training.stop import StopRequest

WORKER = (sys.executable, "-m", "locallearn.thesis.worker")
_POLL = 0.1
GRACE = 300.0
"""Seconds that a worker has to end a step and write a checkpoint before it is killed."""


@dataclass(frozen=True)
class CellJob:
    """A cell to train.

    Attributes:
        name: cell and seed, for messages.
        run: folder of the run; the lock file and the worker's log lie beside it.
        request: what the worker reads, as JSON.
        is_finished: whether its record is there.
        is_ready: whether what it needs is there; a job that waits for another one is begun after it.
    """

    name: str
    run: Path
    request: dict[str, Any]
    is_finished: Callable[[], bool]
    is_ready: Callable[[], bool] = lambda: True

    def beside(self, suffix: str) -> Path:
        """A file beside the run folder."""
        return self.run.with_name(self.run.name + suffix)


@dataclass
class Outcome:
    """What became of the jobs.

    Attributes:
        finished: whose records are there now.
        failed: the job, and why, in one line.
        left: not finished, for want of time; they can be continued.
        interrupted: whether the user stopped the queue.
    """

    finished: list[CellJob] = field(default_factory=list)
    failed: list[tuple[CellJob, str]] = field(default_factory=list)
    left: list[CellJob] = field(default_factory=list)
    interrupted: bool = False


class Silent:
    """Is told how the queue goes, and shows nothing; the command line's display is another one."""

    def on_start(self, job: CellJob) -> None:
        """A worker was started."""

    def on_finish(self, job: CellJob, seconds: float) -> None:
        """A record is there."""

    def on_failure(self, job: CellJob, message: str) -> None:
        """A worker failed."""

    def on_busy(self, job: CellJob, process: str) -> None:
        """Another queue's worker trains this job; it is told once."""

    def on_tick(self, running: Sequence[CellJob]) -> None:
        """Called several times a second."""


@dataclass
class _Running:
    job: CellJob
    process: subprocess.Popen[bytes]
    lock: IO[str]
    started: float
    log_start: int


class Queue:
    """Runs jobs in their order, some at once.

    Args:
        jobs: in order of priority.
        parallel: how many at once.
        observer: is told how it goes.
        command: of a worker.
    """

    def __init__(
        self,
        jobs: Sequence[CellJob],
        parallel: int = 1,
        observer: Silent | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self.parallel, self.command, self.observer = parallel, command, observer or Silent()
        self.outcome = Outcome(finished=[job for job in jobs if job.is_finished()])
        done = {job.name for job in self.outcome.finished}
        self._waiting = [job for job in jobs if job.name not in done]
        self._order = [job.name for job in jobs]
        self._running: list[_Running] = []
        self._told: set[str] = set()

    def run(self, budget: float | None = None) -> Outcome:
        """Run until nothing is left, the budget is spent or the user stops it; then stop workers cleanly.

        Args:
            budget: wall-clock time [s]; None means no end.
        """
        end = time.monotonic() + budget if budget is not None else float("inf")
        with StopRequest() as stop:
            try:
                while (self._waiting or self._running) and not stop.requested and time.monotonic() < end:
                    self._start_some()
                    self._give_up_on_orphans()
                    self.observer.on_tick([running.job for running in self._running])
                    time.sleep(_POLL)
                    self._collect()
            finally:
                self._stop()
            self.outcome.interrupted = stop.requested
        self.outcome.left = sorted(self._waiting, key=lambda job: self._order.index(job.name))
        return self.outcome

    def _start_some(self) -> None:
        for job in list(self._waiting):
            if len(self._running) >= self.parallel:
                return
            if not job.is_ready():
                continue
            lock = acquire(job.beside(".lock"))
            if lock is None:
                self._tell_busy(job)
                continue
            self._waiting.remove(job)
            if job.is_finished():  # by another queue, since ours looked
                lock.close()
                self.outcome.finished.append(job)
            else:
                self._running.append(self._spawn(job, lock))
                self.observer.on_start(job)

    def _give_up_on_orphans(self) -> None:
        """A job whose needs nobody is at work on will never be ready."""
        if self._running or any(job.is_ready() for job in self._waiting):
            return
        for job in self._waiting:
            message = "what it needs was not trained; train it first, or see why it failed"
            self.outcome.failed.append((job, message))
            self.observer.on_failure(job, message)
        self._waiting = []

    def _tell_busy(self, job: CellJob) -> None:
        if job.name not in self._told:
            self._told.add(job.name)
            self.observer.on_busy(job, holder(job.beside(".lock")))

    def _spawn(self, job: CellJob, lock: IO[str]) -> _Running:
        with open(job.beside(".log"), "ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # Ctrl-C reaches the queue alone, which then asks its workers to stop
            )
        keep_nice(process.pid)
        name_holder(lock, process.pid)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(job.request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; its exit code tells
        return _Running(job, process, lock, time.monotonic(), log_start)

    def _collect(self, stopping: bool = False) -> None:
        """Take note of workers that have ended."""
        for running in [running for running in self._running if running.process.poll() is not None]:
            self._running.remove(running)
            job, code = running.job, running.process.returncode
            assert running.process.stdin is not None
            running.process.stdin.close()
            running.lock.close()
            if code == 0 and job.is_finished():
                self.outcome.finished.append(job)
                self.observer.on_finish(job, time.monotonic() - running.started)
            elif stopping:
                self._waiting.append(job)
            else:
                message = _last_line(job.beside(".log"), running.log_start) or _ending(code)
                self.outcome.failed.append((job, message))
                self.observer.on_failure(job, message)

    def _stop(self) -> None:
        """Ask the workers to stop, and wait for their checkpoints."""
        for running in self._running:
            running.process.terminate()
        end = time.monotonic() + GRACE
        while self._running:
            if time.monotonic() > end:
                for running in self._running:
                    running.process.kill()
            time.sleep(_POLL)
            self._collect(stopping=True)


def _last_line(log: Path, start: int) -> str:
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("locallearn: ")


def _ending(code: int) -> str:
    if code == 0:
        return "it was trained but left no record of this configuration (was the program changed meanwhile?)"
    return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"


def default_jobs(device: str | None) -> int:
    """How many cells train at once: one on a CPU; on a GPU one for every 6 GiB of free memory, at most one a core.

    6 GiB hold the data set, the largest cell at batch 1024 and what the driver needs. Small networks leave a large
    GPU mostly idle, because each waits for a CPU core that launches its kernels; hence a core for each.
    """
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(free // (6 << 30), cores()))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
