"""The processes of asynchronous training: how one is started, watched and ended, and what it tells."""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from locallearn.errors import CheckpointError, DivergedError, LocalLearnError, UsageError
from locallearn.runtime.preloaded import with_imports
from locallearn.training.async_job import AsyncJob
from locallearn.training.async_module import ModuleTraining
from locallearn.training.stop import StopRequest

# What takes seconds to import is there already when a process that was killed comes back. torch imports _dynamo by
# itself when a network is first built.
_CONTEXT = with_imports(__name__, "torch._dynamo")

_ERRORS = {kind.__name__: kind for kind in (CheckpointError, DivergedError, LocalLearnError, UsageError)}

_END_SECONDS = 20.0
"""A process that was asked to end and has not done so after this is killed [s]."""


class ModuleProcess:
    """The process that trains one module.

    Args:
        job: what it trains.
    """

    def __init__(self, job: AsyncJob) -> None:
        self.job = job
        self.pipe, theirs = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_main, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends with the process

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """Becomes ready when the process has ended."""
        return self._process.sentinel

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What it has told since the last call.

        Raises:
            LocalLearnError: it ended with that error.
        """
        try:
            while self.pipe.poll():
                message = json.loads(self.pipe.recv_bytes())
                if message["kind"] == "error":
                    raise _ERRORS.get(message["type"], LocalLearnError)(message["text"])
                yield message
        except (EOFError, OSError):
            return

    def end(self) -> None:
        """Ask it to end; ``join`` waits."""
        if self._process.is_alive():
            self._process.terminate()

    def join(self) -> None:
        """Wait until it has ended; kill it where it takes too long."""
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.pipe.close()


def _main(job: AsyncJob, pipe: Connection) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the launcher then ends the others
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(job.config.train.threads or 1)
    lock = threading.Lock()

    def report(message: dict[str, Any]) -> None:
        with lock:
            pipe.send_bytes(json.dumps(message).encode())

    stop = StopRequest(signal.SIGTERM)
    try:
        with stop:
            training = ModuleTraining(job, report, stop)
            training.restore()
            training.run()
    except LocalLearnError as error:
        report({"kind": "error", "type": type(error).__name__, "text": str(error)})
    except BrokenPipeError:
        return  # the launcher has gone
    except Exception as error:  # a fault of ours: let the launcher end all processes and show it
        traceback.print_exc()
        report({"kind": "error", "type": "LocalLearnError", "text": f"module {job.index + 1}: {error!r}"})


def _end_with(sentinel: int) -> None:
    """End this process when the launcher's ends, however that happens."""
    wait([sentinel])
    os._exit(1)
