"""The distributed runtime: this process trains the nodes of its place in the mesh, and features move forward.

Nothing is decided here: :meth:`locallearn.plan.mesh.Placement.actions` lists what a rank does with a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from locallearn.config import MeshConfig
from locallearn.core.module import LocalStep
from locallearn.data.store import Batch, LateBatch
from locallearn.losses.objectives import LocalLoss
from locallearn.plan.mesh import Placement, split
from locallearn.runtime.inline import Runtime, Trained
from locallearn.runtime.peers import ProcessPeers
from locallearn.runtime.transport import Link, Receiver, Sender
from locallearn.runtime.world import ProcessWorld, names_of

_WIRE = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}


class DistributedRuntime(Runtime):
    """Train this rank's modules on one batch after the other.

    Args:
        world: the processes.
        placement: which nodes are where.
        steps: the local steps of this rank's modules by module, counted from 0; their peers are
            :class:`~locallearn.runtime.peers.ProcessPeers`.
        shapes: of one image's features over all groups of every module.
        types: of every module's features.
        names: of the modules.
        config: how features travel.
        views: of every image in a batch, 1 or 2.
    """

    def __init__(
        self,
        world: ProcessWorld,
        placement: Placement,
        steps: Mapping[int, LocalStep],
        shapes: Sequence[tuple[int, ...]],
        types: Sequence[torch.dtype],
        names: Sequence[str],
        config: MeshConfig,
        views: int = 1,
    ) -> None:
        self.world, self.placement, self.config = world, placement, config
        self.steps, self.shapes, self.types, self.names = steps, shapes, types, names
        self.views = views
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
            for sender in self._senders:
                sender.close()

    def open(self, start: int, end: int) -> None:
        """Connect the modules.

        Args:
            start: the first step.
            end: the step after the last one.
        """
        world, here = self.world, self.world.names[self.world.rank]
        wire = _WIRE[self.config.wire]
        for action in self.actions:
            links = [Link(rank, world.names[rank]) for rank in action.ranks]
            if action.kind == "send":
                self._senders.append(
                    Sender(action.module, links, world.features, world.device, self.config.in_flight, wire)
                )
            elif action.kind == "receive":
                channels, *sides = self.shapes[action.module]
                expected = (channels // len(links), *sides)
                dtype, ahead = self.types[action.module], self.config.in_flight
                self._receiver = Receiver(
                    action.module, links, here, world.features, world.device, expected, dtype, start, end, ahead, wire
                )

    def _name(self, rank: int) -> str:
        nodes = [(m, g + 1) for m in self.placement.modules(rank) for g in self.placement.held(m, rank)]
        return names_of([(self.names[m], g) for m, g in nodes], rank)

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for others so far: for features, for room to send, in exchanges."""
        found = sum(end.waited for end in (*self._senders, *self._peers.values()))
        return found + (self._receiver.waited if self._receiver is not None else 0.0)

    def settle(self) -> list[Trained]:
        """Wait until all features that were sent have arrived."""
        for sender in self._senders:
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
        parts = split(len(batch.labels) // self.views, self.placement.mesh.data)
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
            else:
                self._senders[-1].put(features, index, self.stopping)
        return [Trained(labels, losses, examples)]

    def _train(
        self, module: int, features: Tensor, batch: Batch, index: int, rate: float | None, parts: Sequence[range]
    ) -> tuple[Tensor, LocalLoss]:
        if module in self._peers:
            self._peers[module].parts = parts
        return self.steps[module](features, batch, index, rate)


def _rows(batch: Batch, rows: range, views: int) -> Batch:
    """The images of one replica; labels and scores stay those of the whole batch, which losses are of."""
    if len(rows) * views == len(batch.labels):
        return batch

    def part(x_BCHW: Tensor) -> Tensor:
        return torch.cat([view[rows.start : rows.stop] for view in x_BCHW.chunk(views)])

    def make() -> Batch:
        visible = None if batch.visible is None else part(batch.visible)
        images, pixels = part(batch.images), part(batch.pixels)
        return Batch(images, batch.labels, pixels, batch.step, batch.boxes, batch.scores, visible)

    return LateBatch(batch.labels, batch.step, make)
