"""Very many devices, by simulation: what the timeline predicts where nobody has the devices to measure.

Every way trains on the same batch, which is divided among copies; ``docs/distributed.md`` names each assumption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from locallearn.costs.nodes import Cost
from locallearn.costs.timeline import GRADIENT_BYTES, Machine, run_pipeline, steady_seconds
from locallearn.errors import ConfigError
from locallearn.plan import schedule as plans
from locallearn.plan.clock import Run, Slow, simulate
from locallearn.plan.schedule import Need, NodeWork

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

    def machine(self, middle: int) -> Machine:
        """The devices of a pipeline, in whose middle are the slow one and the bad link."""
        bad = Slow(self.bandwidth / self.loss, self.latency * self.loss)
        return Machine(
            self.flops, self.bandwidth, self.latency, slowdown={middle: self.slowdown}, slow_links={middle: bad}
        )

    @property
    def ring(self) -> Machine:
        """What a ring of devices is like: its slowest link is every message's."""
        return Machine(self.flops, self.bandwidth / self.loss, self.latency * self.loss)


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
    machine = cluster.machine(middle)

    def sent(k: int) -> float:
        """Bytes of a batch that a node of module k sends after its forward pass."""
        module, receivers = modules[k], modules[k + 1].groups if k + 1 < len(modules) else 0
        return ((module.groups - 1) * module.shared_bytes + receivers * module.output_bytes) / copies

    def waits(k: int, head: float) -> dict[str, float]:
        """Seconds until what the other groups send is there: before the heads, and after them for the losses."""
        module, (bandwidth, latency) = modules[k], machine.links(message_bytes).of(k)
        shared, scores = ((module.groups - 1) * n / copies for n in (module.shared_bytes, module.score_bytes))
        before = shared / bandwidth + latency if shared else 0.0
        queue = max(0.0, sent(k) / bandwidth - before - head)  # scores go behind the features
        return {"H": before, "B": queue + scores / bandwidth + latency if scores else 0.0}

    def seconds(work: NodeWork) -> float:
        k = work.device
        module = modules[k]
        macs = {"F": module.block_macs, "H": module.head_macs, "B": 2 * module.macs}[work.kind]
        found = machine.seconds(macs * images, k)
        found += waits(k, machine.seconds(module.head_macs * images, k)).get(work.kind, 0.0)
        if work.kind == "B" and copies > 1:
            found += cluster.ring.reduce(GRADIENT_BYTES * module.parameters, copies)
        return found

    def message_bytes(need: Need) -> float:
        return sent(need.work.module - 1)

    def run(batches: int) -> Run:
        return simulate(plans.local([1] * len(modules), batches, in_flight), seconds, machine.links(message_bytes))

    return steady_seconds(run, 2 * len(modules) + 8)


def pipeline_step(cost: Cost, cluster: Cluster, copies: int = 1) -> float:
    """Seconds a step of 1F1B over the network's own modules [s], 4 microbatches a module as far as images go."""
    stages, images = len(cost.reference), cost.batch_size / copies
    microbatches = max(1, min(4 * stages, int(images)))
    machine = cluster.machine(stages // 2)

    def run(batches: int) -> Run:
        schedule = plans.one_forward_one_backward(stages, microbatches, batches)
        return run_pipeline(cost, machine, schedule, microbatches * copies)

    largest = max(stage.parameters for stage in cost.reference)
    return steady_seconds(run, 2) + cluster.ring.reduce(GRADIENT_BYTES * largest, copies)


def data_parallel_step(cost: Cost, cluster: Cluster, copies: int) -> float:
    """Seconds a step of data parallelism [s]; all wait for the slowest copy, and averaging is not overlapped."""
    return _whole(cost, cluster, copies) + cluster.ring.reduce(GRADIENT_BYTES * _parameters(cost), copies)


def sharded_step(cost: Cost, cluster: Cluster, copies: int) -> float:
    """Seconds a step of FSDP [s]: every block's weights are gathered twice and its gradients scattered once.

    All of that overlaps with computing, so the longer of the two is the step.
    """
    blocks = len(cost.reference)
    sent = 3 * blocks * cluster.ring.gather(GRADIENT_BYTES * _parameters(cost) / blocks, copies)
    return max(_whole(cost, cluster, copies), sent)


def seldom_averaged_step(cost: Cost, cluster: Cluster, copies: int) -> float:
    """Seconds a step of copies that average their parameters after every ``LOCAL_STEPS`` steps [s]."""
    average = cluster.ring.reduce(GRADIENT_BYTES * _parameters(cost), copies)
    return _whole(cost, cluster, copies) + average / LOCAL_STEPS


def one_device_step(cost: Cost, cluster: Cluster) -> float:
    """Seconds a step of backpropagation on one device [s]."""
    return cluster.ring.seconds(3 * cost.e2e_macs * cost.batch_size)


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
