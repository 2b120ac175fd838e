"""Which rank trains which nodes, and what each rank does with a batch. Pure data, no tensors, no processes.

A mesh of depth 2, width 2 and data 1 for K = 4 modules of G = 2 groups, with the decoupled classifier::

    rank 0   modules 1, 2   group 1   ->   rank 2   modules 3, 4   group 1, classifier
    rank 1   modules 1, 2   group 2   ->   rank 3   modules 3, 4   group 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from locallearn.errors import ConfigError
from locallearn.plan import cuts


class RankPlace(NamedTuple):
    """Coordinates of a rank, each counted from 0."""

    depth: int
    width: int
    data: int


class Action(NamedTuple):
    """One thing that a rank does with every batch.

    ``kind`` is ``"images"`` (make the batch), ``"receive"`` (the features of ``module`` from ``ranks``, by rising
    groups), ``"gather"`` (the features of ``module`` from all groups, among ``ranks``), ``"step"`` (train
    ``module``; nothing else computes) or ``"send"`` (the features of ``module`` to ``ranks``, once they are there:
    before the module's backward pass). Modules count from 0, the decoupled classifier is the last.
    """

    kind: str
    module: int
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Mesh:
    """Depth x width x data ranks; the rank of a place counts through data first, then width, then depth."""

    depth: int = 1
    width: int = 1
    data: int = 1

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.depth * self.width * self.data

    def rank(self, place: RankPlace) -> int:
        """The rank at a place."""
        return (place.depth * self.width + place.width) * self.data + place.data

    def place(self, rank: int) -> RankPlace:
        """Where a rank is."""
        return RankPlace(rank // (self.width * self.data), rank // self.data % self.width, rank % self.data)


@dataclass(frozen=True)
class Placement:
    """Where every node is; use ``place_nodes``.

    Attributes:
        mesh: the ranks.
        groups: G of every module; the decoupled classifier is the last one and has one.
        spans: the modules of each depth coordinate.
    """

    mesh: Mesh
    groups: tuple[int, ...]
    spans: tuple[range, ...]

    def held(self, module: int, rank: int) -> range:
        """The groups of a module, counted from 0, that a rank has; none where the module is elsewhere.

        A module of one group on a mesh of more width, which only the decoupled classifier may be, is at the first
        width coordinate.
        """
        at, groups = self.mesh.place(rank), self.groups[module]
        if module not in self.spans[at.depth]:
            return range(0)
        if groups == 1:
            return range(1 if at.width == 0 else 0)
        n = groups // self.mesh.width
        return range(at.width * n, (at.width + 1) * n)

    def modules(self, rank: int) -> list[int]:
        """The modules that a rank has groups of."""
        return [m for m in range(len(self.groups)) if self.held(m, rank)]

    def holders(self, module: int, replica: int) -> tuple[int, ...]:
        """The ranks of one replica that hold a module, by rising groups."""
        ranks = range(self.mesh.size)
        return tuple(r for r in ranks if self.mesh.place(r).data == replica and self.held(module, r))

    def beside(self, rank: int, module: int) -> int:
        """The rank that has a module and is at the same width and data coordinates as this rank."""
        at = self.mesh.place(rank)
        depth = next(d for d, span in enumerate(self.spans) if module in span)
        return self.mesh.rank(at._replace(depth=depth))

    def actions(self, rank: int) -> tuple[Action, ...]:
        """What a rank does with every batch, in order."""
        at = self.mesh.place(rank)
        span = self.spans[at.depth]
        row = tuple(self.mesh.rank(RankPlace(at.depth, w, at.data)) for w in range(self.mesh.width))
        actions: list[Action] = []
        for m in span:
            mine = bool(self.held(m, rank))
            if m == 0 and mine:
                actions.append(Action("images", 0))
            elif m == span.start and mine:
                actions.append(Action("receive", m - 1, self.holders(m - 1, at.data)))
            elif m != span.start and len(row) > 1:  # also by ranks that only give
                actions.append(Action("gather", m - 1, row))
            if mine:
                actions.append(Action("step", m))
        if span.stop < len(self.groups) and self.held(span.stop - 1, rank):
            actions.append(Action("send", span.stop - 1, self.holders(span.stop, at.data)))
        return tuple(actions)


def place_nodes(mesh: Mesh, groups: Sequence[int], costs: Sequence[float], decoupled: bool) -> Placement:
    """Place the nodes of K modules: contiguous modules a depth coordinate, so that the dearest is as cheap as can be.

    Args:
        mesh: the ranks.
        groups: G of each of the K modules.
        costs: cost of each of the K modules, in any unit.
        decoupled: whether a decoupled classifier follows; it is with the last module.

    Raises:
        ConfigError: more ranks in depth than modules, or in width than divide the groups.
    """
    depth = len(groups)
    if mesh.depth > depth:
        raise ConfigError("mesh.depth", mesh.depth, f"at most {depth}, the number of modules")
    if any(n % mesh.width for n in groups):
        names = "/".join(str(n) for n in groups) if len(set(groups)) > 1 else str(groups[0])
        raise ConfigError("mesh.width", mesh.width, f"a divisor of the groups of every module ({names})")
    edges = [0, *(cut + 1 for cut in cuts.balanced(costs, mesh.depth)), depth + decoupled]
    spans = tuple(range(a, b) for a, b in pairwise(edges))
    return Placement(mesh, (*groups, *([1] if decoupled else [])), spans)


def split(size: int, parts: int) -> tuple[range, ...]:
    """The rows of each part of ``size`` rows; the first parts have one more where they cannot be equal."""
    small, more = divmod(size, parts)
    edges = [i * small + min(i, more) for i in range(parts + 1)]
    return tuple(range(a, b) for a, b in pairwise(edges))
