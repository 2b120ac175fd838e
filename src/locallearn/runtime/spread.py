"""Evaluation of a user's model whose stages are in processes: each computes its own, and features move forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from locallearn.core.batches import CalledBatch
from locallearn.core.model_stage import ModelStage
from locallearn.core.module import Features, each_of
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Batch
from locallearn.plan.mesh import Placement
from locallearn.runtime.world import ProcessWorld


class SpreadNetwork(LocalNetwork):
    """The stages that this process has of a user's model; no process has all of them.

    Args:
        own: they, by place, counted from 0.
        names: of all stages.
        world: the processes.
        placement: which stages are where.
        read: by (reader, owner) the weights of a stage that another one reads: the owner's, and the reader's copies.
    """

    def __init__(
        self,
        own: Mapping[int, ModelStage],
        names: Sequence[tuple[str, int]],
        world: ProcessWorld,
        placement: Placement,
        read: Mapping[tuple[int, int], Sequence[tuple[Tensor, Tensor]]],
    ) -> None:
        super().__init__(list(own.values()))
        self._names, self._world, self._placement = list(names), world, placement
        self._read, self._held = read, list(own)
        self.evaluates = world.place.data == 0
        """Whether this process takes part in an evaluation: the first of each stage's replicas."""

    @property
    def nodes(self) -> list[tuple[str, int]]:
        """Name and group of every node: on the first process of all stages, elsewhere of its own."""
        return self._names if self._world.leader else super().nodes

    def refresh(self) -> None:
        """Set copies of what other processes' stages train to what it is now, before an evaluation."""
        for (reader, owner), pairs in sorted(self._read.items()):
            source, target = (self._placement.holders(k, 0)[0] for k in (owner, reader))
            if source == target or self._world.rank not in (source, target):
                continue
            given = {str(i): theirs for i, (theirs, _) in enumerate(pairs)} if self._world.rank == source else {}
            found = self._world.moved(given, source, target)
            for i, (_, copy) in enumerate(pairs if self._world.rank == target else ()):
                copy.data.copy_(found[str(i)])

    def look(self, batch: Batch) -> Iterator[tuple[str, Tensor | None, Tensor]]:
        """What evaluation needs of every stage; on other processes than the first of their own stages."""
        assert isinstance(batch, CalledBatch)
        world, ranks = self._world, self._ranks
        here = ranks.index(world.rank)
        features: Features = batch.images
        if here:
            features = _together(world.moved({}, ranks[here - 1], world.rank), batch.images)
        found: dict[str, Tensor] = {}
        for stage in self:
            output = stage(features, batch)
            loss, features = stage.loss(output, batch).detached(), stage.handed_on(output)
            found[f"{stage.name}/loss"] = loss.total
            if loss.logits is not None:
                found[f"{stage.name}/scores"] = loss.logits
        if here + 1 < len(ranks):
            world.moved(_apart(features), world.rank, ranks[here + 1])
        if not world.leader:
            world.moved(found, world.rank, 0)
        for rank in ranks[1:] if world.leader else ():
            found |= {name: value.to(batch.images.device) for name, value in world.moved({}, rank, 0).items()}
        for name in dict.fromkeys(name for name, _ in self.nodes):
            yield name, found.get(f"{name}/scores"), found[f"{name}/loss"]

    @property
    def _ranks(self) -> list[int]:
        """The processes that take part, in the order of their stages."""
        return list(dict.fromkeys(self._placement.holders(k, 0)[0] for k in range(len(self._placement.groups))))


def _apart(features: Features) -> dict[str, Tensor]:
    return {str(i): each for i, each in enumerate(each_of(features))}


def _together(found: Mapping[str, Tensor], like: Tensor) -> Features:
    many = [found[str(i)].to(like.device) for i in range(len(found))]
    return tuple(many) if len(many) > 1 else many[0]
