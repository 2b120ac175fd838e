"""The distributed runtime: this process trains the nodes of its place in the mesh, and features move forward.

Nothing is decided here: ``locallearn.plan.mesh.Placement.actions`` lists what a rank does with a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from locallearn.config import MeshConfig
from locallearn.core.batches import CalledBatch
from locallearn.core.local_step import LocalStep
from locallearn.core.module import Features
from locallearn.core.weighing import check_rows
from locallearn.data.store import Batch, LateBatch
from locallearn.losses.objectives import LocalLoss
from locallearn.plan.mesh import Placement, split
from locallearn.runtime.inline import Runtime, Trained
from locallearn.runtime.messages import Link
from locallearn.runtime.transport import WEIGHTS, Receiver, Sender
from locallearn.runtime.width_peers import ProcessPeers
from locallearn.runtime.world import ProcessWorld, names_of

WIRE = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}
"""Number formats of what processes send each other, by ``mesh.wire``."""


class DistributedRuntime(Runtime):
    """Train this rank's modules on one batch after the other.

    Args:
        world: the processes.
        placement: which nodes are where.
        steps: the local steps of this rank's modules by module, counted from 0; their peers are
            ``ProcessPeers``.
        shapes: of one image's features over all groups of every module; None for a user's own model.
        types: of every module's features; None likewise.
        names: of the modules.
        config: how features travel.
        views: of every image in a batch, 1 or 2.
        counts: tensors that every module hands on; by default one.
        read: by (reader, owner) the weights of a module that another one reads: the owner's, and the reader's copies.
    """

    def __init__(
        self,
        world: ProcessWorld,
        placement: Placement,
        steps: Mapping[int, LocalStep],
        shapes: Sequence[tuple[int, ...]] | None,
        types: Sequence[torch.dtype] | None,
        names: Sequence[str],
        config: MeshConfig,
        views: int = 1,
        counts: Sequence[int] = (),
        read: Mapping[tuple[int, int], Sequence[tuple[Tensor, Tensor]]] | None = None,
    ) -> None:
        self.world, self.placement, self.config = world, placement, config
        self.steps, self.shapes, self.types, self.names = steps, shapes, types, names
        self.views, self.counts = views, counts
        self._read = dict(read or {})
        self._weight_senders: dict[tuple[int, int], Sender] = {}
        self._weight_receivers: dict[tuple[int, int], Receiver] = {}
        self._first = 0
        self.actions = placement.actions(world.rank)
        world.names = [self._name(rank) for rank in range(placement.mesh.size)]
        self._peers = {m: step.peers for m, step in steps.items() if isinstance(step.peers, ProcessPeers)}
        for action in self.actions:
            if action.kind == "gather":
                self._peers[action.module].keeps = True
        self.stopping = False
        """Whether training stops after the last batch; all processes have agreed."""
        self._senders: list[Sender] = []
        self._receiver: Receiver | None = None

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            for sender in self._all_senders():
                sender.close()

    def open(self, start: int, end: int) -> None:
        """Connect the modules.

        Args:
            start: the first step.
            end: the step after the last one.
        """
        world, here = self.world, self.world.names[self.world.rank]
        wire = WIRE[self.config.wire]
        for action in self.actions:
            links = [Link(rank, world.names[rank]) for rank in action.ranks]
            if action.kind == "send":
                self._senders.append(
                    Sender(action.module, links, world.features, world.device, self.config.in_flight, wire)
                )
            elif action.kind == "receive":
                self._receiver = self._receives(action.module, links, here, start, end, wire)
        self._connect_weights(start, end)

    def _receives(
        self, module: int, links: Sequence[Link], here: str, start: int, end: int, wire: torch.dtype | None
    ) -> Receiver:
        world, ahead = self.world, self.config.in_flight
        expected, dtype = None, None
        if self.shapes is not None and self.types is not None:
            channels, *sides = self.shapes[module]
            expected, dtype = (channels // len(links), *sides), self.types[module]
        count = self.counts[module] if self.counts else 1
        return Receiver(
            module, links, here, world.features, world.device, expected, dtype, start, end, ahead, wire, count=count
        )

    def _connect_weights(self, start: int, end: int) -> None:
        """Connect modules with those whose weights they read, where another process has these."""
        world, ahead = self.world, self.config.in_flight
        here, self._first = world.names[world.rank], start
        for (reader, owner), pairs in sorted(self._read.items()):
            reads, owns = (self.placement.beside(world.rank, module) for module in (reader, owner))
            if reads == owns:
                continue
            if owns == world.rank:
                to = [Link(reads, world.names[reads])]
                sender = Sender(owner, to, world.features, world.device, ahead, kind=self._kind(reader, owner))
                self._weight_senders[reader, owner] = sender
            elif reads == world.rank:
                source = [Link(owns, world.names[owns])]
                self._weight_receivers[reader, owner] = Receiver(
                    owner,
                    source,
                    here,
                    world.features,
                    world.device,
                    None,
                    None,
                    start,
                    end,
                    ahead,
                    kind=self._kind(reader, owner),
                    count=len(pairs),
                )

    def _kind(self, reader: int, owner: int) -> int:
        """Tells messages with weights from others between the same processes."""
        return WEIGHTS + 2 * (reader * len(self.names) + owner)

    def _all_senders(self) -> list[Sender]:
        return [*self._senders, *self._weight_senders.values()]

    def _name(self, rank: int) -> str:
        nodes = [(m, g + 1) for m in self.placement.modules(rank) for g in self.placement.held(m, rank)]
        return names_of([(self.names[m], g) for m, g in nodes], rank)

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for others so far: for features, for room to send, in exchanges."""
        ends = (*self._all_senders(), *self._weight_receivers.values(), *self._peers.values())
        found = sum(end.waited for end in ends)
        return found + (self._receiver.waited if self._receiver is not None else 0.0)

    @property
    def sent_bytes(self) -> int:
        """What this rank has sent to others so far."""
        return sum(end.sent_bytes for end in (*self._all_senders(), *self._peers.values()))

    def settle(self) -> list[Trained]:
        """Wait until all features that were sent have arrived."""
        for sender in self._all_senders():
            sender.flush()
        return []

    def stops(self, requested: bool) -> bool:
        """Whether all processes have agreed to stop after the last batch."""
        return self.stopping

    def step(self, batch: Batch, index: int, rate: float | None = None, stop: bool = False) -> list[Trained]:
        """Train this rank's modules on one batch.

        Args:
            batch: the whole batch; its images are only made where they are needed.
            index: number of the step in the run.
            rate: learning rate of the step.
            stop: whether this process was asked to stop. The ranks of the first modules agree, and the batch is
                the last one on every rank.

        Returns:
            The batch with the losses of this rank's modules.

        Raises:
            PeerLostError: another process is gone.
            TransportError: a module sent something else than what this one awaits.
        """
        parts = split(batch.examples // self.views, self.placement.mesh.data)
        check_rows(batch.examples, parts)
        own = parts[self.world.place.data]
        labels, examples, batch = batch.labels, batch.examples, _rows(batch, own, self.views)
        features, losses = torch.empty(0), []
        if self.world.place.depth == 0:
            self.stopping = self.world.agree(stop)
        for action in self.actions:
            if action.kind == "images":
                features = batch.images
            elif action.kind == "receive":
                assert self._receiver is not None
                features, self.stopping = self._receiver.get(self.views * len(own))
            elif action.kind == "gather":
                features = self._peers[action.module].features(features)
            elif action.kind == "step":
                features, loss = self._train(action.module, features, batch, index, rate, parts)
                losses.append(loss)
        return [Trained(labels, losses, examples)]

    def _train(
        self, module: int, features: Tensor, batch: Batch, index: int, rate: float | None, parts: Sequence[range]
    ) -> tuple[Tensor, LocalLoss]:
        self._prepare(module, index, parts)
        found = self.steps[module](features, batch, index, rate, self._hands_on(module, index))
        self._send_weights(module, index)
        return found

    def _hands_on(self, module: int, index: int) -> Callable[[Features], None] | None:
        """Sends the features of a module whose next one is in another process, before its own backward pass."""
        if not any(action.kind == "send" and action.module == module for action in self.actions):
            return None
        return lambda features: self._senders[-1].put(features, index, self.stopping)

    def _prepare(self, module: int, index: int, parts: Sequence[range]) -> None:
        """Before a module computes: whose rows are where, and what it reads of others."""
        if module in self._peers:
            self._peers[module].parts = parts
        self._take_weights(module, index)

    def _send_weights(self, module: int, index: int) -> None:
        """Send what other processes read of a module, which has been updated."""
        for (reader, owner), sender in sorted(self._weight_senders.items()):
            if owner == module:
                weights = tuple(source.detach().clone() for source, _ in self._read[reader, owner])
                sender.put(weights, index, self.stopping)

    @torch.no_grad()
    def _take_weights(self, module: int, index: int) -> None:
        """Set the module's copies of what it reads to what its owner has after its update on this batch.

        A later owner's are those after the batch before; at the first step they are here already.
        """
        for (reader, owner), pairs in sorted(self._read.items()):
            if reader != module or (owner > reader and index == self._first):
                continue
            values = [source for source, _ in pairs]
            if (reader, owner) in self._weight_receivers:
                found = self._weight_receivers[reader, owner].get(0).features
                values = list(found) if isinstance(found, tuple) else [found]
            for (_, copy), value in zip(pairs, values, strict=True):
                if copy is not value:
                    copy.copy_(value)


def _rows(batch: Batch, rows: range, views: int) -> Batch:
    """The images of one replica; labels and scores stay those of the whole batch, which losses are of."""
    if len(rows) * views == batch.examples:
        return batch
    if isinstance(batch, CalledBatch):
        return batch.rows(rows)

    def part(x_BCHW: Tensor) -> Tensor:
        return torch.cat([view[rows.start : rows.stop] for view in x_BCHW.chunk(views)])

    def make() -> Batch:
        visible = None if batch.visible is None else part(batch.visible)
        images, pixels = part(batch.images), part(batch.pixels)
        return Batch(images, batch.labels, pixels, batch.step, batch.boxes, batch.scores, visible)

    return LateBatch(batch.labels, batch.step, make)
