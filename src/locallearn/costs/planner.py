"""Proposes depth, width, cuts and head for some devices and a memory limit, and says what else would serve.

Candidates are enumerated, their memory and time predicted (``locallearn.costs.footprint``,
``locallearn.costs.timeline``), those that fit are ranked, and the others keep the reason why not. Which
candidates there are does not depend on the limits: more memory or more devices never make the proposal slower.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from locallearn.config import RunConfig
from locallearn.core.assembly import block_runs, build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.footprint import Footprint, bytes_text, of_node, of_one_device
from locallearn.costs.nodes import CIFAR10, Cost, cost
from locallearn.costs.timeline import Machine, run_local
from locallearn.errors import ConfigError, UsageError
from locallearn.nn.backbones import build_backbone
from locallearn.plan import cuts as cutting


@dataclass(frozen=True)
class Candidate:
    """A K x G network on one device, or on a device a node.

    Attributes:
        config: what ``locallearn train`` would be given.
        ends: names of the blocks that cuts follow, K - 1.
        cost: what its nodes cost.
        devices: 1 (module after module), or K times G.
        footprints: of the nodes of each module, or of the one device.
        makespan: of ``batches`` batches [s].
        wire_bytes: sent by all devices in that time.
        batches: batches that it is predicted for.
    """

    config: RunConfig
    ends: tuple[str, ...]
    cost: Cost
    devices: int
    footprints: tuple[Footprint, ...]
    makespan: float
    wire_bytes: int
    batches: int

    @property
    def memory(self) -> int:
        """What the fullest device needs [bytes]."""
        return max(footprint.total for footprint in self.footprints)

    @property
    def nodes(self) -> int:
        """K times G."""
        return len(self.cost.nodes)

    def sent_bytes(self, k: int) -> int:
        """What a node of module k (from 0) sends for one batch [bytes]; 0 where all nodes share a device."""
        return 0 if self.devices == 1 else self.cost.sent_bytes(k)


@dataclass(frozen=True)
class Refusal:
    """A candidate that is not proposed, and why. ``memory`` [bytes] is known where it could be built."""

    depth: int
    width: int
    head: str
    devices: int
    reason: str
    memory: int | None = None


@dataclass(frozen=True)
class Plan:
    """What fits, best first, and what was refused. The first one is the proposal."""

    fits: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]

    @property
    def proposal(self) -> Candidate:
        """The fastest; of equally fast ones the one with the fewest nodes, as accuracy falls with K and G."""
        return self.fits[0]


def enumerate_candidates(
    config: RunConfig,
    image: ImageShape = CIFAR10,
    *,
    machine: Machine,
    depths: Sequence[int] = cutting.DEPTHS,
    widths: Sequence[int] = cutting.WIDTHS,
    heads: Sequence[str] = (),
    batches: int = 8,
    in_flight: int = 2,
    on_step: Callable[[str], None] | None = None,
    cuts_of: Callable[[RunConfig], tuple[str, ...]] | None = None,
) -> tuple[list[Candidate], list[Refusal]]:
    """Predict every candidate, each on one device and on a device a node.

    Args:
        config: model, method, cuts, objective, optimizer, batch size and precision; its depth and width are not used.
        image: what the network is built for.
        machine: the devices.
        depths: K to try.
        widths: G to try; all modules have the same.
        heads: auxiliary heads to try; by default the configuration's.
        batches: of the predicted run, from an empty pipeline to the last update.
        in_flight: batches that a module may have begun and the next one not yet taken forward.
        on_step: is told what is looked at next.
        cuts_of: names the blocks that cuts follow for a configuration, whose own cuts are then not used.

    Returns:
        The candidates, and those that cannot be built.

    Raises:
        ConfigError: the model is not known, a number is too small, or the method trains without labels.
    """
    for name, values in (("depths", depths), ("widths", widths), ("batches", [batches]), ("in_flight", [in_flight])):
        if not values or min(values) < 1:
            raise ConfigError(name, tuple(values), "whole numbers of at least 1")
    found, refused = [], []
    backbone = build_backbone(config.model, image.channels, image.size, config.dropout, config.patch_size)
    names = [block.name for block in backbone.blocks]
    costs = [run.macs for run in block_runs(backbone, image.sizes)]
    for head, depth, width in itertools.product(heads or (config.objective.head,), sorted(depths), sorted(widths)):
        if on_step:
            on_step(f"K = {depth}, G = {width}, head {head}")
        objective = dataclasses.replace(config.objective, head=head)
        one = dataclasses.replace(config, depth=depth, width=(width,), objective=objective)
        try:
            if cuts_of is not None and depth > 1:
                one = dataclasses.replace(one, cuts=cuts_of(one))
            counted = cost(one, image)
            cuts = cutting.choose(backbone.family, names, costs, depth, one.cuts)
        except ConfigError as error:
            refused.append(Refusal(depth, width, head, depth * width, str(error)))
            continue
        if not found:
            _check_supervised(one, image)
        ends = tuple(names[cut] for cut in cuts)
        image_bytes = 4 * counted.batch_size * math.prod(image.sizes)
        found += placements(one, ends, counted, image_bytes, machine, batches, in_flight)
    return found, refused


def _check_supervised(config: RunConfig, image: ImageShape) -> None:
    """Two views, or hidden patches, are another batch than that which the usual ways are compared for here."""
    with torch.device("meta"):
        supervised = build_network(config, image).has_classifier
    if not supervised:
        raise ConfigError("method", config.method, "a method with labels; locallearn cost counts the others")


def placements(
    config: RunConfig,
    ends: tuple[str, ...],
    counted: Cost,
    image_bytes: int,
    machine: Machine,
    batches: int,
    in_flight: int,
) -> list[Candidate]:
    """A network on one device, and on a device a node.

    Args:
        config: what it is trained with.
        ends: where its modules end.
        counted: what its nodes cost.
        image_bytes: what is given for one batch.
        machine: the devices.
        batches: of the predicted run.
        in_flight: batches that a module may have begun and the next one not yet taken forward.
    """
    macs = sum(module.groups * module.macs for module in counted.modules)
    alone = Candidate(
        config=config,
        ends=ends,
        cost=counted,
        devices=1,
        footprints=(of_one_device(counted, config.optimizer, image_bytes),),
        makespan=batches * machine.seconds(3 * macs * counted.batch_size),
        wire_bytes=0,
        batches=batches,
    )
    if len(counted.nodes) == 1:
        return [alone]
    run = run_local(counted, machine, batches, in_flight)
    each = [of_node(counted, k, config.optimizer, image_bytes, in_flight) for k in range(len(counted.modules))]
    spread = dataclasses.replace(
        alone,
        devices=len(counted.nodes),
        footprints=tuple(each),
        makespan=run.makespan,
        wire_bytes=round(run.wire_bytes),
    )
    return [alone, spread]


def choose(candidates: Sequence[Candidate], refused: Sequence[Refusal] = (), *, devices: int, memory: int) -> Plan:
    """Rank the candidates that fit: by makespan, then by K times G, then by K.

    Args:
        candidates: from ``enumerate_candidates``.
        refused: those that could not be built.
        devices: how many there are.
        memory: of each device [bytes].

    Raises:
        UsageError: none fits; the message tells the least memory that one would need.
    """
    plan = sift(candidates, refused, devices=devices, memory=memory)
    if not plan.fits:
        raise UsageError(_nothing_fits(candidates, devices, memory))
    return plan


def sift(candidates: Sequence[Candidate], refused: Sequence[Refusal] = (), *, devices: int, memory: int) -> Plan:
    """The same as ``choose``, but for a plan without any candidate where none fits."""
    fits, out = [], list(refused)
    for one in candidates:
        reason = None
        if one.devices > devices:
            reason = "more devices than there are"
        elif one.memory > memory:
            reason = "more memory than there is"
        if reason is None:
            fits.append(one)
        else:
            width, head = one.config.width[0], one.config.objective.head
            out.append(Refusal(one.config.depth, width, head, one.devices, reason, one.memory))
    fits.sort(key=lambda one: (one.makespan, one.nodes, one.config.depth, one.memory))
    return Plan(tuple(fits), tuple(out))


def _nothing_fits(candidates: Sequence[Candidate], devices: int, memory: int) -> str:
    few = [one for one in candidates if one.devices <= devices]
    if not few:
        return "no plan can be built with these depths and widths"
    least = min(few, key=lambda one: one.memory)
    return (
        f"no plan fits {bytes_text(memory)} a device: the smallest (K = {least.config.depth}, "
        f"G = {least.config.width[0]} on {least.devices} of {devices} devices) needs {bytes_text(least.memory)}; "
        "give more memory, more devices or a smaller batch"
    )
