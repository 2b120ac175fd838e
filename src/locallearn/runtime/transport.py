"""Features on their way from the ranks of one module to those of the next.

Threads send and receive while the process computes. At most ``in_flight`` batches are on their way from a sender, and
a receiver takes in as many ahead of the one that it computes. They are on their way together: none waits until the
one before it has arrived, which takes several times the link's latency. Every message begins with a header that says
what it is, so that a mismatch is an error and not a hang.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.core.module import Features, each_of
from locallearn.runtime.messages import FIELDS, Header, Link, TransportError, elements, flat, without_gaps
from locallearn.runtime.transfers import Background, Transfer, mark
from locallearn.runtime.world import naming

HEADER, PAYLOAD = 0, 1
"""Tags: headers and features are on their way at the same time, each in order."""
FEATURES, GRADIENTS, WEIGHTS = 0, 2, 4
"""Added to tags: what one stage hands on, what of it the next one's loss gives back, and weights that others read."""


class Sender:
    """Sends one module's features to the ranks of the next.

    Args:
        module: the module, counted from 0.
        targets: who gets them.
        group: the process group of features.
        device: where features are.
        in_flight: batches that may be on their way, at least 1.
        wire: how floating point values travel; None leaves them as they are.
        kind: ``FEATURES``, ``GRADIENTS`` or ``WEIGHTS``.
    """

    def __init__(
        self,
        module: int,
        targets: Sequence[Link],
        group: dist.ProcessGroup,
        device: torch.device,
        in_flight: int,
        wire: torch.dtype | None = None,
        kind: int = FEATURES,
    ) -> None:
        self.kind = kind
        self.module, self.targets, self.in_flight, self.wire = module, targets, in_flight, wire
        self.waited = 0.0
        self.sent_bytes = 0
        self._group = group
        self._waiting = 0
        self._queue: queue.SimpleQueue[tuple[list[tuple[Header, Tensor]], torch.Event | None] | None]
        self._queue = queue.SimpleQueue()
        self._sent: queue.SimpleQueue[list[Transfer] | None] = queue.SimpleQueue()
        self._background = Background(device, self._send_all, self._complete_all)
        self._background.start()

    def put(self, features: Features, step: int, last: bool = False) -> None:
        """Hand over the features of a step, a tensor or several; waits while ``in_flight`` batches are on their way.

        Raises:
            PeerLostError: a receiver is gone.
        """
        parts = [without_gaps(x) for x in each_of(features)]
        items = [
            (Header(step, self.module, last, x.dtype, self.wire or x.dtype, tuple(x.shape), x.stride()), x)
            for x in parts
        ]
        self.waited += self._background.wait_for(lambda: self._waiting < self.in_flight)
        with self._background.changed:
            self._waiting += 1
        self._queue.put((items, mark(parts[0].device)))

    def flush(self) -> None:
        """Wait until everything is sent."""
        self._background.wait_for(lambda: self._waiting == 0)

    def close(self) -> None:
        """Send what waits, and end the threads."""
        self.flush()
        self._queue.put(None)
        self._background.join()

    def _send_all(self) -> None:
        while (item := self._queue.get()) is not None:
            items, computed = item
            if computed is not None:
                computed.wait()
            transfers = []
            for header, x in items:
                messages = ((HEADER, header.pack().to(x.device)), (PAYLOAD, flat(x).to(header.wire)))
                transfers += [self._begin(m, self.kind + tag, to) for tag, m in messages for to in self.targets]
            self._sent.put(transfers)
        self._sent.put(None)

    def _begin(self, message: Tensor, tag: int, target: Link) -> Transfer:
        self.sent_bytes += message.nbytes
        with naming(target.name):
            return Transfer(dist.isend(message, target.rank, group=self._group, tag=tag), message, target)

    def _complete_all(self) -> None:
        while (transfers := self._sent.get()) is not None:
            for transfer in transfers:
                transfer.complete()
            with self._background.changed:
                self._waiting -= 1
                self._background.changed.notify_all()


class Arrival(NamedTuple):
    """Features of all groups of a module, a tensor or several, and whether training stops after them."""

    features: Features
    last: bool


class Receiver:
    """Receives one module's features from its ranks, some batches ahead.

    Args:
        module: the module that sends, counted from 0.
        sources: who sends, by rising groups.
        here: how messages name this end.
        group: the process group of features.
        device: where features go.
        expected: shape of one image's features from one source; None for whatever a user's model gives.
        dtype: their type; None for any.
        start: the first step that arrives.
        end: the step after the last one.
        ahead: batches that may be on their way or here before they are computed, at least 1.
        wire: how they travel; None means as they are.
        kind: ``FEATURES``, ``GRADIENTS`` or ``WEIGHTS``.
        count: tensors that a source sends for a batch.
    """

    def __init__(
        self,
        module: int,
        sources: Sequence[Link],
        here: str,
        group: dist.ProcessGroup,
        device: torch.device,
        expected: tuple[int, ...] | None,
        dtype: torch.dtype | None,
        start: int,
        end: int,
        ahead: int,
        wire: torch.dtype | None = None,
        kind: int = FEATURES,
        count: int = 1,
    ) -> None:
        self.kind, self.count = kind, count
        self.module, self.sources, self.here, self.expected = module, sources, here, expected
        self.dtype, self.wire = dtype, (wire or dtype) if dtype is not None else None
        self.waited = 0.0
        self._group, self._device = group, device
        self._steps = range(start, end)
        self._room = threading.Semaphore(ahead)
        self._announced: queue.SimpleQueue[list[tuple[Header, Transfer]]] = queue.SimpleQueue()
        self._arrived: deque[Arrival] = deque()
        self._background = Background(device, self._announce_all, self._receive_all)
        self._background.start()

    def get(self, images: int) -> Arrival:
        """The next batch's features.

        Args:
            images: how many images they must be of; not looked at where no shape is expected.

        Raises:
            TransportError: something else arrived; the message names both ends.
            PeerLostError: a sender is gone.
        """
        self.waited += self._background.wait_for(lambda: bool(self._arrived))
        arrival = self._arrived.popleft()
        self._room.release()
        for x in arrival.features if isinstance(arrival.features, tuple) else (arrival.features,):
            if x.is_cuda:  # memory of the thread's stream, which must not take it back too early
                x.record_stream(torch.cuda.current_stream(self._device))
        if self.expected is not None and len(arrival.features) != images:
            found = f"{len(arrival.features)} images instead of {images}"
            raise TransportError(f"{self.here} got {found} from {self.sources[0].name}")
        return arrival

    def _announce_all(self) -> None:
        """Await the header of each batch, and begin to receive what it announces."""
        for step in self._steps:
            self._room.acquire()
            sources = [source for source in self.sources for _ in range(self.count)]
            headers = [self._header(source, step) for source in sources]
            self._announced.put([self._begin(h, source) for h, source in zip(headers, sources, strict=True)])
            if headers[0].last:
                return

    def _header(self, source: Link, step: int) -> Header:
        packed = torch.empty(FIELDS, dtype=torch.int64, device=self._device)
        with naming(source.name):
            dist.recv(packed, source.rank, group=self._group, tag=self.kind + HEADER)
        header = Header.unpack(packed)
        for what, found, awaited in (
            ("module", header.module + 1, self.module + 1),
            ("step", header.step, step),
            ("feature shape", header.shape[1:], self.expected),
            ("features of", header.dtype, self.dtype),
            ("a message in", header.wire, self.wire),
        ):
            if awaited is not None and found != awaited:
                raise TransportError(f"{self.here} got {what} {found} from {source.name} instead of {awaited}")
        return header

    def _begin(self, header: Header, source: Link) -> tuple[Header, Transfer]:
        payload = torch.empty(elements(header.shape), dtype=header.wire, device=self._device)
        with naming(source.name):
            work = dist.irecv(payload, source.rank, group=self._group, tag=self.kind + PAYLOAD)
        return header, Transfer(work, payload, source)

    def _receive_all(self) -> None:
        for _ in self._steps:
            parts = [self._arrival(header, transfer) for header, transfer in self._announced.get()]
            arrival = Arrival(self._together([part.features for part in parts]), parts[0].last)
            with self._background.changed:
                self._arrived.append(arrival)
                self._background.changed.notify_all()
            if arrival.last:
                return

    def _together(self, parts: list[Tensor]) -> Features:
        """Several tensors of one source as they are, or the groups of several sources as one tensor."""
        if self.count > 1:
            return tuple(parts)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _arrival(self, header: Header, transfer: Transfer) -> Arrival:
        transfer.complete()
        return Arrival(transfer.message.to(header.dtype).as_strided(header.shape, header.stride), header.last)
