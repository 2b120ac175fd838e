"""A boundary between modules that run at their own pace: a sender that never waits, a receiver with a buffer.

A message is one safetensors document in one frame of a local socket, so nothing that is received can be code. Either
end may die and come back: the sender connects again, and the receiver accepts whoever comes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from locallearn.errors import LocalLearnError
from locallearn.runtime.replay import ReplayBuffer, Sample

_RETRY_SECONDS = 0.02
_TYPES = (torch.float32, torch.bfloat16)


class BoundaryError(LocalLearnError):
    """What a module received is not what it expects."""


@dataclass(frozen=True, eq=False)
class Message:
    """Features of one batch.

    Attributes:
        features: of the module before, [B, C, H, W] or [B, C].
        epoch: epoch of the batch, from 0.
        step: its position in the epoch, from 0.
        clock: how far the sender's training is [steps].
        final: the sender has ended its training; it sends only as fast as messages are used.
    """

    features: Tensor
    epoch: int
    step: int
    clock: int
    final: bool

    def encode(self) -> bytes:
        """The message as a safetensors document."""
        position = torch.tensor([self.epoch, self.step, self.clock, self.final])
        return save({"features": self.features.cpu().contiguous(), "position": position})

    @staticmethod
    def decode(document: bytes, shape: tuple[int, ...], link: str) -> Message:
        """The message in a document.

        Args:
            document: what ``encode`` wrote.
            shape: features of one image that are expected.
            link: which nodes the boundary lies between, for messages.

        Raises:
            BoundaryError: it is something else; the message names both nodes.
        """
        try:
            tensors = load(document)
            features, position = tensors["features"], tensors["position"]
            epoch, step, clock, final = position.tolist()
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BoundaryError(f"{link}: the message is damaged ({error})") from None
        if features.dtype not in _TYPES or tuple(features.shape[1:]) != shape:
            found = f"{tuple(features.shape)} of {features.dtype}"
            raise BoundaryError(f"{link}: features {found} came; expected (B, {', '.join(map(str, shape))})")
        return Message(features, epoch, step, clock, bool(final))


class BoundarySender:
    """Sends the newest messages from a thread of its own; the oldest give way when the receiver does not keep up.

    Args:
        path: the receiver's socket; it need not be there yet.
        waiting: messages that wait at most.
    """

    def __init__(self, path: Path, waiting: int = 2) -> None:
        self.path = path
        self._queue: deque[Message] = deque(maxlen=waiting)
        self._changed = threading.Condition()
        self._open = True
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, message: Message) -> None:
        """Send a message some time; never waits."""
        with self._changed:
            self._queue.append(message)
            self._changed.notify_all()

    def wait_for_room(self, timeout: float) -> bool:
        """Wait so many seconds at most until a message would push out no other one, and tell whether it is so."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._queue) < (self._queue.maxlen or 0), timeout)

    def close(self) -> None:
        """Stop sending."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _run(self) -> None:
        connection = None
        while self._open:
            try:
                connection = connection or Client(str(self.path), "AF_UNIX")
                with self._changed:
                    if not self._changed.wait_for(lambda: self._queue or not self._open, timeout=1):
                        continue
                    message = self._queue.popleft() if self._queue else None
                    self._changed.notify_all()
                if message is not None:
                    connection.send_bytes(message.encode())
            except OSError:  # the receiver is not there: not yet, or no more
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(_RETRY_SECONDS)
        if connection is not None:
            connection.close()


class BoundaryReceiver:
    """Receives messages in a thread of its own, into a replay buffer.

    Args:
        path: the socket; one that a killed process left there is replaced.
        buffer: where messages go.
        shape: features of one image that are expected.
        link: which nodes the boundary lies between, for messages.
    """

    def __init__(self, path: Path, buffer: ReplayBuffer[Message], shape: tuple[int, ...], link: str) -> None:
        self.buffer = buffer
        self.clock = 0
        """How far the sender's training is, as it told last [steps]."""
        self._shape, self._link = shape, link
        self._changed = threading.Condition()
        self._error: LocalLearnError | None = None
        self._open = True
        path.unlink(missing_ok=True)
        self._listener = Listener(str(path), "AF_UNIX")
        threading.Thread(target=self._run, daemon=True).start()

    def take(self, timeout: float, fresh: bool = False) -> Sample[Message] | None:
        """A batch to use, waiting for one so many seconds at most; see ``ReplayBuffer.take``.

        Raises:
            BoundaryError: what came was something else.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                sample = self.buffer.take(fresh)
                if sample is not None:
                    self._changed.notify_all()
                    return sample
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return None

    def close(self) -> None:
        """Stop receiving."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._listener.close()

    def _run(self) -> None:
        while self._open:
            try:
                with self._listener.accept() as connection:
                    self._receive(connection)
            except (EOFError, OSError):  # the sender has gone, perhaps within a message; it may come back
                continue
            except LocalLearnError as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return

    def _receive(self, connection: Connection) -> None:
        while self._open:
            message = Message.decode(connection.recv_bytes(), self._shape, self._link)
            with self._changed:
                self.buffer.put(message)
                self.clock = max(self.clock, message.clock)
                self._changed.notify_all()
                if message.final:  # nobody's training waits for this sender any more: let it wait
                    self._changed.wait_for(self._wants_more)

    def _wants_more(self) -> bool:
        return self.buffer.unused < min(2, self.buffer.size) or not self._open
