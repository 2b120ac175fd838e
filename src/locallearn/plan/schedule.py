"""Schedules: which device does what in which order, and what each piece of work waits for. Pure data.

``locallearn.plan.clock`` turns a schedule into times and a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

_OneBatch = Callable[[int], list[tuple[str, int]]]
"""From a batch's first microbatch to (kind, microbatch) in order."""


class NodeWork(NamedTuple):
    """One piece of work.

    ``kind`` is ``"F"`` (forward pass of the blocks), ``"H"`` (forward pass of a node's heads), ``"B"`` (backward
    pass and update), ``"G"`` (backward pass from the gradient that the next module returns, and the update that waits
    for it) or ``"R"`` (ring all-reduce). ``module`` counts from 1, ``device`` and ``microbatch`` from 0;
    microbatches count through all batches.
    """

    device: int
    kind: str
    module: int
    microbatch: int


class Need(NamedTuple):
    """Work that must be done first, and what travels from it.

    ``what`` is ``"features"`` (for the next module), ``"shared"`` (features for the heads of the other groups),
    ``"scores"``, ``"weights"`` (for the module before), ``"read"`` (weights for ``reader``), ``"gradient"``, or
    ``""`` where only the end of the work is awaited. ``reader`` is the module that weights are for, where several may
    read an owner's; else 0.
    """

    work: NodeWork
    what: str
    reader: int = 0


@dataclass(frozen=True)
class Schedule:
    """An order of work for every device, and what work needs from other devices."""

    order: tuple[tuple[NodeWork, ...], ...]
    needs: dict[NodeWork, tuple[Need, ...]]


def local(
    groups: Sequence[int],
    batches: int,
    in_flight: int = 2,
    shares_features: Sequence[bool] | None = None,
    shares_scores: Sequence[bool] | None = None,
    follows: Sequence[bool] | None = None,
    reads: Sequence[tuple[int, int]] = (),
    overlap: bool = False,
) -> Schedule:
    """Local learning: a device a node, module by module; no gradient flows backward but where modules overlap.

    A node sends its features to all nodes of the next module and goes on without waiting for them. It begins a
    batch when the next module has fewer than ``in_flight`` batches to take from it.

    Args:
        groups: G of every module.
        batches: batches to train on.
        in_flight: batches begun in a module whose forward pass in the next has not ended, at least 1.
        shares_features: for every module, whether its heads wait for the features of its other groups; no by default.
        shares_scores: for every module, whether its losses wait for the class scores of its other groups; likewise.
        follows: for every module, whether a node waits for weights of the same group of the next module, as they are
            after the batch before (head ``momentum``); likewise.
        reads: (reader, owner), modules counted from 1: the reader waits for the owner's weights, of an earlier module
            after its update on the same batch, of a later one after the batch before.
        overlap: whether the next module's loss trains a module, too, which waits for its gradient.
    """
    no = [False] * len(groups)
    features, scores, following = shares_features or no, shares_scores or no, follows or no
    order: list[tuple[NodeWork, ...]] = []
    needs: dict[NodeWork, tuple[Need, ...]] = {}
    nodes = [(k, device) for k in range(len(groups)) for device in devices_of(groups, k)]
    kinds = ["FHBG"] * (len(groups) - 1) + ["FHB"] if overlap else ["FHB"] * len(groups)
    for k, device in nodes:
        for batch in range(batches):
            before = _of_module(groups, "F", k - 1, batch, "features") if k else []
            if k + 1 < len(groups) and batch >= in_flight:  # the next module's queue has room again
                before += _of_module(groups, "F", k + 1, batch - in_flight, "")
            if following[k] and batch:
                updated = _of_module(groups, kinds[k + 1][-1], k + 1, batch - 1, "weights")
                before.append(updated[device - sum(groups[:k])])
            for owner in (o for r, o in reads if r == k + 1 and (o <= k or batch)):
                trained = _of_module(groups, kinds[owner - 1][-1], owner - 1, batch - (owner > k), "read")
                before += [need._replace(reader=k + 1) for need in trained]
            peers = [_of_module(groups, kind, k, batch, what) for kind, what in (("F", "shared"), ("H", "scores"))]
            back = _of_module(groups, "B", k + 1, batch, "gradient") if k + 1 < len(groups) else []
            waits = (before, peers[0] * features[k], peers[1] * scores[k], back)
            for kind, wanted in zip(kinds[k], waits, strict=False):
                needs[NodeWork(device, kind, k + 1, batch)] = tuple(n for n in wanted if n.work.device != device)
        order.append(tuple(NodeWork(device, kind, k + 1, batch) for batch in range(batches) for kind in kinds[k]))
    return Schedule(tuple(order), needs)


def devices_of(groups: Sequence[int], k: int) -> range:
    """The devices of the nodes of module k, counted from 0, where every node has its own."""
    start = sum(groups[:k])
    return range(start, start + groups[k])


def _of_module(groups: Sequence[int], kind: str, k: int, batch: int, what: str) -> list[Need]:
    """The same work of all nodes of a module."""
    return [Need(NodeWork(device, kind, k + 1, batch), what) for device in devices_of(groups, k)]


def backpropagation(batches: int) -> Schedule:
    """The whole network on one device."""
    return gpipe(1, 1, batches)


def gpipe(stages: int, microbatches: int, batches: int = 1) -> Schedule:
    """GPipe (Huang et al., 2019): all microbatches forward, then all backward, then the next batch.

    Args:
        stages: devices, one module each.
        microbatches: parts of a batch.
        batches: batches to train on.
    """

    def one(first: int) -> list[tuple[str, int]]:
        micro = range(first, first + microbatches)
        return [("F", m) for m in micro] + [("B", m) for m in reversed(micro)]

    return _pipeline([one] * stages, microbatches, batches)


def one_forward_one_backward(stages: int, microbatches: int, batches: int = 1) -> Schedule:
    """1F1B (PipeDream-Flush, Narayanan et al., 2021): after a few forwards each stage alternates with backwards.

    Stage k of K holds the activations of at most K - k + 1 microbatches. Arguments as for ``gpipe``.
    """

    def stage(k: int, first: int) -> list[tuple[str, int]]:
        ahead = min(stages - 1 - k, microbatches)
        micro = list(range(first, first + microbatches))
        order = [("F", m) for m in micro[:ahead]]
        for i, m in enumerate(micro[ahead:]):
            order += [("F", m), ("B", micro[i])]
        return order + [("B", m) for m in micro[microbatches - ahead :]]

    return _pipeline([partial(stage, k) for k in range(stages)], microbatches, batches)


def _pipeline(one_batch: Sequence[_OneBatch], microbatches: int, batches: int) -> Schedule:
    """``one_batch[k](first)`` is what stage k does with the batch whose microbatches count from ``first``."""
    stages = len(one_batch)
    order = tuple(
        tuple(NodeWork(k, kind, k + 1, m) for b in range(batches) for kind, m in plan(b * microbatches))
        for k, plan in enumerate(one_batch)
    )
    needs: dict[NodeWork, tuple[Need, ...]] = {}
    for work in (work for items in order for work in items):
        source, what = (work.device - 1, "features") if work.kind == "F" else (work.device + 1, "gradient")
        wanted = Need(NodeWork(source, work.kind, source + 1, work.microbatch), what)
        needs[work] = (wanted,) if 0 <= source < stages else ()
    return Schedule(order, needs)


def data_parallel(devices: int, batches: int) -> Schedule:
    """Every device trains the whole network on its part of a batch, then all average their gradients."""
    order = tuple(tuple(NodeWork(d, kind, 1, b) for b in range(batches) for kind in "FBR") for d in range(devices))
    needs: dict[NodeWork, tuple[Need, ...]] = {}
    for work in (work for items in order for work in items):
        others = (d for d in range(devices) if d != work.device and work.kind == "R")
        needs[work] = tuple(Need(NodeWork(d, "B", 1, work.microbatch), "") for d in others)
    return Schedule(order, needs)
