"""Very many devices, by simulation: what the timeline predicts where nobody has the devices to measure.

Every way trains on the same batch, which is divided among copies; ``docs/distributed.md`` names each assumption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from locallearn.costs.nodes import Cost
from locallearn.errors import ConfigError
from locallearn.plan import schedule as plans
from locallearn.plan.clock import Links, Slow, simulate
from locallearn.plan.schedule import Need, NodeWork, Schedule

GRADIENT_BYTES = 4
"""Gradients and parameters are averaged in fp32."""

LOCAL_STEPS = 100
"""Steps of a copy between two averages of parameters (DiLoCo, Douillard et al., 2023, has 50 to 500)."""


@dataclass(frozen=True)
class Cluster:
    """Devices in a ring of equal links, one of which may be slow and another one's link bad.

    Attributes:
        flops: operations a second that a device reaches.
        bandwidth: of what a device sends [bytes/s].
        latency: from the last byte sent to its arrival [s].
        slowdown: one device computes that many times as long; 1 for none.
        loss: what one device sends takes that many times as long, latency included; 1 for none.
    """

    flops: float
    bandwidth: float
    latency: float
    slowdown: float = 1.0
    loss: float = 1.0

    def reduce(self, n_bytes: float, copies: int) -> float:
        """Seconds of a ring all-reduce [s]: 2 (N - 1) messages of an N-th each, all devices at a time."""
        return 2 * self.gather(n_bytes, copies)

    def gather(self, n_bytes: float, copies: int) -> float:
        """Seconds of a ring all-gather of parts, or of a reduce-scatter [s]; its slowest link is every message's."""
        return (copies - 1) * self.loss * (n_bytes / copies / self.bandwidth + self.latency)

    def seconds(self, macs: float) -> float:
        """How long a device computes [s]."""
        return 2 * macs / self.flops


def local_step(cost: Cost, cluster: Cluster, copies: int = 1, in_flight: int = 2) -> float:
    """Seconds a step of local learning, with a device a node and copies of them all [s].

    The groups of a module are equal, and the next module waits for all of them: one node stands for them, and its
    link carries, one after the other, what goes to the other groups and to all nodes of the next module. A slow
    device and a bad link are in the middle of the network.

    Args:
        cost: of the K x G network.
        cluster: the devices.
        copies: R; each node has an R-th of the batch and averages its gradients with the others of its place.
        in_flight: batches that a module may have begun and the next one not yet taken forward.
    """
    modules, images = cost.modules, cost.batch_size / copies
    middle = len(modules) // 2

    def sent(k: int) -> float:
        """Bytes of a batch that a node of module k sends after its forward pass."""
        module, receivers = modules[k], modules[k + 1].groups if k + 1 < len(modules) else 0
        return ((module.groups - 1) * module.shared_bytes + receivers * module.output_bytes) / copies

    def waits(k: int, head: float) -> dict[str, float]:
        """Seconds until what the other groups send is there: before the heads, and after them for the losses."""
        module, bad = modules[k], cluster.loss if k == middle else 1.0
        shared, scores = ((module.groups - 1) * n / copies for n in (module.shared_bytes, module.score_bytes))
        before = bad * (shared / cluster.bandwidth + cluster.latency) if shared else 0.0
        queue = max(0.0, bad * sent(k) / cluster.bandwidth - before - head)  # scores go behind the features
        return {"H": before, "B": queue + bad * (scores / cluster.bandwidth + cluster.latency) if scores else 0.0}

    def seconds(work: NodeWork) -> float:
        k = work.device
        module, slow = modules[k], cluster.slowdown if k == middle else 1.0
        macs = {"F": module.block_macs, "H": module.head_macs, "B": 2 * module.macs}[work.kind]
        found = slow * cluster.seconds(macs * images)
        found += waits(k, slow * cluster.seconds(module.head_macs * images)).get(work.kind, 0.0)
        if work.kind == "B" and copies > 1:
            found += cluster.reduce(GRADIENT_BYTES * module.parameters, copies)
        return found

    def message_bytes(need: Need) -> float:
        return sent(need.work.module - 1)

    def schedule(batches: int) -> Schedule:
        return plans.local([1] * len(modules), batches, in_flight)

    return _steady(schedule, seconds, _links(message_bytes, cluster, middle), 2 * len(modules) + 8)


def pipeline_step(cost: Cost, cluster: Cluster, copies: int = 1) -> float:
    """Seconds a step of 1F1B over the network's own modules [s], 4 microbatches a module as far as images go."""
    stages, images = len(cost.reference), cost.batch_size / copies
    microbatches = max(1, min(4 * stages, int(images)))
    middle, each = stages // 2, images / microbatches

    def seconds(work: NodeWork) -> float:
        slow = cluster.slowdown if work.device == middle else 1.0
        return slow * cluster.seconds(each * cost.reference[work.module - 1].macs * (2 if work.kind == "B" else 1))

    def message_bytes(need: Need) -> float:
        sender = need.work.module - (1 if need.what == "gradient" else 0)
        return each * cost.reference[sender - 1].features * (2 if cost.precision == "bf16" else 4)

    def schedule(batches: int) -> Schedule:
        return plans.one_forward_one_backward(stages, microbatches, batches)

    largest = max(stage.parameters for stage in cost.reference)
    once = _steady(schedule, seconds, _links(message_bytes, cluster, middle), 2)  # each batch empties it
    return once + cluster.reduce(GRADIENT_BYTES * largest, copies)


def data_parallel_step(cost: Cost, cluster: Cluster, copies: int) -> float:
    """Seconds a step of data parallelism [s]; all wait for the slowest copy, and averaging is not overlapped."""
    return _whole(cost, cluster, copies) + cluster.reduce(GRADIENT_BYTES * _parameters(cost), copies)


def sharded_step(cost: Cost, cluster: Cluster, copies: int) -> float:
    """Seconds a step of FSDP [s]: every block's weights are gathered twice and its gradients scattered once.

    All of that overlaps with computing, so the longer of the two is the step.
    """
    blocks = len(cost.reference)
    sent = 3 * blocks * cluster.gather(GRADIENT_BYTES * _parameters(cost) / blocks, copies)
    return max(_whole(cost, cluster, copies), sent)


def seldom_averaged_step(cost: Cost, cluster: Cluster, copies: int) -> float:
    """Seconds a step of copies that average their parameters after every ``LOCAL_STEPS`` steps [s]."""
    return _whole(cost, cluster, copies) + cluster.reduce(GRADIENT_BYTES * _parameters(cost), copies) / LOCAL_STEPS


def one_device_step(cost: Cost, cluster: Cluster) -> float:
    """Seconds a step of backpropagation on one device [s]."""
    return cluster.seconds(3 * cost.e2e_macs * cost.batch_size)


WHOLE: dict[str, Callable[[Cost, Cluster, int], float]] = {
    "DDP": data_parallel_step,
    "FSDP": sharded_step,
    "DiLoCo-like": seldom_averaged_step,
}
"""Ways that have copies of the whole network."""


def speedups(
    cells: dict[tuple[int, int], Cost], devices: int, conditions: dict[str, Cluster], in_flight: int = 2
) -> list[dict[str, Any]]:
    """Steps a second of every way on that many devices, over those of one device without a network.

    Args:
        cells: costs of networks by (K, G), end to end left out; those whose nodes divide ``devices`` are used.
        devices: N.
        conditions: clusters by name.
        in_flight: as in ``local_step``.

    Returns:
        A row a way: ``way``, ``devices``, ``copies`` and, under ``speedups``, a number for every condition.

    Raises:
        ConfigError: a copy would have less than an image.
    """
    found = []
    some = next(iter(cells.values()))
    if devices > some.batch_size:
        raise ConfigError("--devices", devices, f"at most {some.batch_size}, the images of a batch")

    def row(way: str, copies: int, step: Callable[[Cluster], float]) -> None:
        numbers = {name: one_device_step(some, cluster) / step(cluster) for name, cluster in conditions.items()}
        found.append({"way": way, "devices": devices, "copies": copies, "speedups": numbers})

    stages = max((cost for cost in cells.values() if not devices % len(cost.reference)), key=_stages, default=None)
    for (depth, width), cost in cells.items():
        if devices % (depth * width) == 0:
            copies = devices // (depth * width)
            name = f"{'DGL' if width == 1 else 'GN-DGL'} {depth} x {width}"
            row(name, copies, lambda c, cost=cost, copies=copies: local_step(cost, c, copies, in_flight))
    if stages is not None:
        copies = devices // _stages(stages)
        row(f"1F1B {_stages(stages)}", copies, lambda c: pipeline_step(stages, c, copies))
    for way, step in WHOLE.items():
        row(way, devices, lambda c, step=step: step(some, c, devices))
    return found


def _stages(cost: Cost) -> int:
    return len(cost.reference)


def _parameters(cost: Cost) -> int:
    return sum(stage.parameters for stage in cost.reference)


def _whole(cost: Cost, cluster: Cluster, copies: int) -> float:
    return cluster.slowdown * one_device_step(cost, cluster) / copies


def _links(message_bytes: Callable[[Need], float], cluster: Cluster, middle: int) -> Links:
    bad = Slow(cluster.bandwidth / cluster.loss, cluster.latency * cluster.loss)
    return Links(message_bytes, cluster.bandwidth, cluster.latency, {middle: bad})


def _steady(schedule: Callable[[int], Schedule], seconds: Callable[[NodeWork], float], links: Links, n: int) -> float:
    """Seconds a batch once the pipeline is full, which it is after n batches."""
    return (simulate(schedule(2 * n), seconds, links).makespan - simulate(schedule(n), seconds, links).makespan) / n
