"""Messages between ranks that are on their way while the process computes, and the threads that wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.runtime.messages import Link
from locallearn.runtime.world import naming


class Transfer(NamedTuple):
    """A message on its way, which must be kept until it has arrived."""

    work: dist.Work | None
    message: Tensor
    peer: Link

    def complete(self) -> None:
        """Wait until it has arrived, or been sent."""
        with naming(self.peer.name):
            if self.work is not None:
                self.work.wait()
        _finish(self.message.device)


class Background:
    """Threads whose failure is raised in the process's own thread."""

    def __init__(self, device: torch.device, *works: Callable[[], None]) -> None:
        self.failure: Exception | None = None
        self.changed = threading.Condition()
        self._device = device
        self._threads = [threading.Thread(target=self._run, args=(work,), daemon=True) for work in works]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until they have ended."""
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        lane = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        try:
            with torch.cuda.stream(lane):  # copies do not wait for kernels, nor kernels for copies
                work()
        except Exception as error:
            with self.changed:
                self.failure = self.failure or error
                self.changed.notify_all()

    def wait_for(self, ready: Callable[[], bool]) -> float:
        """Wait until ``ready`` and return the seconds that it took; raise what the thread failed with."""
        begin = time.perf_counter()
        with self.changed:
            self.changed.wait_for(lambda: ready() or self.failure is not None)
        if self.failure is not None and not ready():
            raise self.failure
        return time.perf_counter() - begin


def mark(device: torch.device) -> torch.Event | None:
    """An event after everything that this thread has asked a GPU for."""
    if device.type != "cuda":
        return None
    event = torch.Event(device)
    event.record()
    return event


def _finish(device: torch.device) -> None:
    """Wait for the GPU's copies of this thread, so that another may use or free what they touch."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
