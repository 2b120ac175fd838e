"""Features on their way from the ranks of one module to those of the next.

A thread sends and a thread receives while the process computes. At most ``in_flight`` batches wait to be sent, and
the receiver takes in one batch ahead of the one that it computes. Every message begins with a header that says what
it is, so that a mismatch is an error and not a hang.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.errors import LocalLearnError
from locallearn.runtime.world import naming

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_DIMS = 5
_HEADER = 7 + 2 * _MAX_DIMS
_VERSION = 1


class TransportError(LocalLearnError):
    """What arrived is not what was awaited."""


class Header(NamedTuple):
    """What a message is: features of ``module`` at ``step``, and whether training stops after them."""

    step: int
    module: int
    last: bool
    dtype: torch.dtype
    wire: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def pack(self) -> Tensor:
        """As int64."""
        pad = [0] * (_MAX_DIMS - len(self.shape))
        codes = _DTYPES.index(self.dtype), _DTYPES.index(self.wire)
        head = [_VERSION, self.step, self.module, int(self.last), *codes, len(self.shape)]
        return torch.tensor([*head, *self.shape, *pad, *self.stride, *pad])

    @classmethod
    def unpack(cls, packed: Tensor) -> Header:
        """From int64."""
        version, step, module, last, dtype, wire, dims, *sizes = packed.tolist()
        if version != _VERSION or not 0 <= dims <= _MAX_DIMS:
            raise TransportError("it is not a message of this version of locallearn")
        shape, stride = tuple(sizes[:dims]), tuple(sizes[_MAX_DIMS : _MAX_DIMS + dims])
        return cls(step, module, bool(last), _DTYPES[dtype], _DTYPES[wire], shape, stride)


def dense(x: Tensor) -> Tensor:
    """The same tensor in memory without gaps; channels-last memory is kept."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last or x.is_contiguous() else x.contiguous()


def flat(x: Tensor) -> Tensor:
    """The memory of a dense tensor as one dimension."""
    return x.as_strided((x.numel(),), (1,))


class Link(NamedTuple):
    """One end of a connection: the other rank, and how messages name it."""

    rank: int
    name: str


class _Background:
    """A thread whose failure is raised in the process's own thread."""

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self.failure: Exception | None = None
        self._work, self._device = work, device
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.changed = threading.Condition()

    def _run(self) -> None:
        lane = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        try:
            with torch.cuda.stream(lane):  # copies do not wait for kernels, nor kernels for copies
                self._work()
        except Exception as error:
            with self.changed:
                self.failure = error
                self.changed.notify_all()

    def wait_for(self, ready: Callable[[], bool]) -> float:
        """Wait until ``ready`` and return the seconds that it took; raise what the thread failed with."""
        begin = time.perf_counter()
        with self.changed:
            self.changed.wait_for(lambda: ready() or self.failure is not None)
        if self.failure is not None and not ready():
            raise self.failure
        return time.perf_counter() - begin


class Sender:
    """Sends one module's features to the ranks of the next.

    Args:
        module: the module, counted from 0.
        targets: who gets them.
        group: the process group of features.
        device: where features are.
        in_flight: batches that may wait to be sent, at least 1.
        wire: how floating point values travel; None leaves them as they are.
    """

    def __init__(
        self,
        module: int,
        targets: Sequence[Link],
        group: dist.ProcessGroup,
        device: torch.device,
        in_flight: int,
        wire: torch.dtype | None = None,
    ) -> None:
        self.module, self.targets, self.in_flight, self.wire = module, targets, in_flight, wire
        self.waited = 0.0
        self._group = group
        self._waiting = 0
        self._queue: queue.SimpleQueue[tuple[Header, Tensor, torch.Event | None] | None] = queue.SimpleQueue()
        self._background = _Background(self._send_all, device)
        self._background.thread.start()

    def put(self, features: Tensor, step: int, last: bool = False) -> None:
        """Hand over the features of a step; waits while ``in_flight`` batches are on their way.

        Raises:
            PeerLostError: a receiver is gone.
        """
        x = dense(features)
        header = Header(step, self.module, last, x.dtype, self.wire or x.dtype, tuple(x.shape), x.stride())
        self.waited += self._background.wait_for(lambda: self._waiting < self.in_flight)
        with self._background.changed:
            self._waiting += 1
        self._queue.put((header, x, _mark(x.device)))

    def flush(self) -> None:
        """Wait until everything is sent."""
        self._background.wait_for(lambda: self._waiting == 0)

    def close(self) -> None:
        """Send what waits, and end the thread."""
        self.flush()
        self._queue.put(None)
        self._background.thread.join()

    def _send_all(self) -> None:
        while (item := self._queue.get()) is not None:
            header, x, computed = item
            if computed is not None:
                computed.wait()
            payload = flat(x).to(header.wire)
            for message in (header.pack().to(x.device), payload):
                for target in self.targets:
                    with naming(target.name):
                        dist.send(message, target.rank, group=self._group)
            _finish(x.device)
            with self._background.changed:
                self._waiting -= 1
                self._background.changed.notify_all()


class Arrival(NamedTuple):
    """Features of all groups of a module, and whether training stops after them."""

    features: Tensor
    last: bool


class Receiver:
    """Receives one module's features from its ranks, one batch ahead.

    Args:
        module: the module that sends, counted from 0.
        sources: who sends, by rising groups.
        here: how messages name this end.
        group: the process group of features.
        device: where features go.
        expected: shape of one image's features from one source.
        dtype: their type.
        start: the first step that arrives.
        end: the step after the last one.
        wire: how they travel; None means as they are.
    """

    def __init__(
        self,
        module: int,
        sources: Sequence[Link],
        here: str,
        group: dist.ProcessGroup,
        device: torch.device,
        expected: tuple[int, ...],
        dtype: torch.dtype,
        start: int,
        end: int,
        wire: torch.dtype | None = None,
    ) -> None:
        self.module, self.sources, self.here, self.expected = module, sources, here, expected
        self.dtype, self.wire = dtype, wire or dtype
        self.waited = 0.0
        self._group, self._device = group, device
        self._steps = range(start, end)
        self._room = threading.Semaphore(1)
        self._arrived: list[Arrival] = []
        self._background = _Background(self._receive_all, device)
        self._background.thread.start()

    def get(self, images: int) -> Arrival:
        """The next batch's features.

        Args:
            images: how many images they must be of.

        Raises:
            TransportError: something else arrived; the message names both ends.
            PeerLostError: a sender is gone.
        """
        self.waited += self._background.wait_for(lambda: bool(self._arrived))
        arrival = self._arrived.pop()
        self._room.release()
        if len(arrival.features) != images:
            found = f"{len(arrival.features)} images instead of {images}"
            raise TransportError(f"{self.here} got {found} from {self.sources[0].name}")
        return arrival

    def _receive_all(self) -> None:
        for step in self._steps:
            self._room.acquire()
            parts = [self._receive(source, step) for source in self.sources]
            features = parts[0].features if len(parts) == 1 else torch.cat([part.features for part in parts], 1)
            arrival = Arrival(features, parts[0].last)
            with self._background.changed:
                self._arrived.append(arrival)
                self._background.changed.notify_all()
            if arrival.last:
                return

    def _receive(self, source: Link, step: int) -> Arrival:
        packed = torch.empty(_HEADER, dtype=torch.int64, device=self._device)
        with naming(source.name):
            dist.recv(packed, source.rank, group=self._group)
        header = Header.unpack(packed)
        for what, found, awaited in (
            ("module", header.module + 1, self.module + 1),
            ("step", header.step, step),
            ("feature shape", header.shape[1:], self.expected),
            ("features of", header.dtype, self.dtype),
            ("a message in", header.wire, self.wire),
        ):
            if found != awaited:
                raise TransportError(f"{self.here} got {what} {found} from {source.name} instead of {awaited}")
        payload = torch.empty(header.shape[0] * _size(self.expected), dtype=header.wire, device=self._device)
        with naming(source.name):
            dist.recv(payload, source.rank, group=self._group)
        _finish(self._device)
        return Arrival(payload.to(header.dtype).as_strided(header.shape, header.stride), header.last)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _mark(device: torch.device) -> torch.Event | None:
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
