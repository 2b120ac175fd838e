"""One process of a ``Crew``; its argument is the file number of its connection."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from locallearn.bench.trainers import Lap, TimedJob, TimedTrainer, build_trainer
from locallearn.costs.memory import ActivationMeter
from locallearn.runtime.world import Alone, ProcessWorld, process_world
from locallearn.training.allocator import keep_freed_memory


def _run(trainer: TimedTrainer, steps: int) -> Lap:
    """Train so many steps with the others."""
    return _lap(trainer, trainer.step, steps)


def _alone(trainer: TimedTrainer, steps: int) -> Lap:
    """Do what this process does in so many steps, without the others."""
    return _lap(trainer, trainer.alone, steps)


def _lap(trainer: TimedTrainer, step: Callable[[], None], steps: int) -> Lap:
    lap = Lap([], [])
    for _ in range(steps):
        step()
        lap.ends.append(time.perf_counter())
        lap.waits.append(trainer.waited)
    return lap


def _losses(trainer: TimedTrainer, steps: int) -> list[list[float]]:
    """What every one of so many steps with the others trained on here."""
    found = []
    for _ in range(steps):
        trainer.step()
        found.append([float(loss.sum()) for loss in trainer.losses])
    return found


def _memory(trainer: TimedTrainer) -> int:
    """The most memory that this process has had so far [bytes]."""
    return _resident("VmHWM")


def _weigh(trainer: TimedTrainer, steps: int) -> int:
    """The peak of what autograd keeps for the backward pass in a step [bytes]."""
    with ActivationMeter(trainer.parameters) as meter:
        for _ in range(steps):
            trainer.step()
    return meter.peak_bytes


def _echo(trainer: TimedTrainer, n_bytes: int, times: int) -> list[float]:
    """Send bytes from the first process to the second and back, and tell how long each time took [s]."""
    rank, x, found = dist.get_rank(), torch.zeros(n_bytes, dtype=torch.uint8), []
    for _ in range(times if rank < 2 else 0):
        begin = time.perf_counter()
        for source in (0, 1):
            dist.send(x, 1 - rank) if rank == source else dist.recv(x, 1 - rank)
        found.append(time.perf_counter() - begin)
    return found


COMMANDS: dict[str, Callable[..., Any]] = {
    "run": _run,
    "alone": _alone,
    "losses": _losses,
    "memory": _memory,
    "weigh": _weigh,
    "echo": _echo,
}


def _resident(name: str) -> int:
    """A size in ``/proc/self/status`` [bytes]; 0 on systems without it."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            sizes = dict(line.split(":", 1) for line in status)
        return int(sizes[name].split()[0]) * 1024
    except OSError:
        return 0


@contextlib.contextmanager
def _world(job: TimedJob) -> Iterator[Alone | ProcessWorld]:
    if job.config.mesh.size == 1:
        yield Alone()
        return
    with process_world(job.config, job.setting.device) as world:
        yield world


def serve(connection: Connection) -> None:
    """Build the trainer of a job that is received, and obey commands until there are no more."""
    job = connection.recv()
    torch.set_num_threads(job.setting.threads or 1)
    keep_freed_memory()
    with _world(job) as world:
        trainer = build_trainer(job, world)
        connection.send((True, _resident("VmRSS")))  # it is ready
        while True:
            command, arguments = connection.recv()
            connection.send((True, COMMANDS[command](trainer, *arguments)))


def _end_with_starter() -> None:
    """The process that started this one holds the other end of the standard input."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """A process of a crew; its argument is the file number of its end of the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection)
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send((False, f"{str(error).strip().splitlines()[0]}" if str(error).strip() else repr(error)))
    os._exit(1)  # threads of a process group may wait for others


if __name__ == "__main__":
    main()
