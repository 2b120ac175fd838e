"""From counts to time: local learning on a device a node, next to the usual ways of training on several devices.

A forward pass takes 2 operations per multiply-accumulate, a backward pass with the update twice as long. What else
is assumed is in ``docs/cost.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from locallearn.costs.nodes import Cost
from locallearn.errors import ConfigError
from locallearn.plan import schedule as plans
from locallearn.plan.clock import Links, Run, Slow, simulate
from locallearn.plan.schedule import Need, NodeWork

GRADIENT_BYTES = 4
"""Gradients are averaged in fp32."""


@dataclass(frozen=True)
class Machine:
    """Devices, each with one link to all others; equal ones but for those that are named.

    Attributes:
        device_flops: operations a second that a device reaches (a multiply-accumulate is two); or else
        step_seconds: how long every device computes for a batch, measured [s].
        bandwidth: of what a device sends [bytes/s]; None means no limit.
        latency: from the last byte sent to its arrival [s].
        slowdown: devices that take so many times as long, where ``device_flops`` says how long.
        slow_links: devices whose messages have another bandwidth and latency.
    """

    device_flops: float | None = None
    bandwidth: float | None = None
    latency: float = 0.0
    step_seconds: tuple[float, ...] = ()
    slowdown: Mapping[int, float] = field(default_factory=dict)
    slow_links: Mapping[int, Slow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, expected in (("device_flops", "operations a second"), ("bandwidth", "bytes a second")):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(name, value, f"{expected}, above 0")
        if self.device_flops is None and not self.step_seconds:
            raise ConfigError("device_flops", None, "operations a second, where step_seconds are not measured")
        if not 0 <= self.latency < math.inf:
            raise ConfigError("latency", self.latency, "seconds, at least 0")

    def seconds(self, macs: float, device: int = 0, step_macs: float = 1.0) -> float:
        """How long a device takes for that many multiply-accumulates, of ``step_macs`` that it has in a step [s]."""
        if self.step_seconds:
            return self.step_seconds[device] * macs / step_macs
        assert self.device_flops is not None
        return self.slowdown.get(device, 1.0) * 2 * macs / self.device_flops

    def links(self, message_bytes: Callable[[Need], float]) -> Links:
        """The links, for messages of that size."""
        return Links(message_bytes, self.bandwidth or math.inf, self.latency, self.slow_links)

    def gather(self, n_bytes: float, devices: int) -> float:
        """Seconds of a ring all-gather of N parts, or of a reduce-scatter [s]: N - 1 messages of a part each."""
        return (devices - 1) * (n_bytes / devices / (self.bandwidth or math.inf) + self.latency)

    def reduce(self, n_bytes: float, devices: int) -> float:
        """Seconds of a ring all-reduce [s], which is both."""
        return 2 * self.gather(n_bytes, devices)


def timeline(
    cost: Cost, machine: Machine, batches: int = 8, microbatches: int | None = None, in_flight: int = 2
) -> dict[str, Any]:
    """Predict when every device does what, for local learning and for four ways of backpropagation.

    ``local`` has a device a node; ``backpropagation`` trains the reference network on one device; ``gpipe`` and
    ``1f1b`` have a device a module of it; ``data-parallel`` has as many devices as ``local``.

    Args:
        cost: what the nodes cost.
        machine: the devices.
        batches: batches to train on, from an empty pipeline to the last update.
        microbatches: parts of a batch of ``gpipe`` and ``1f1b``; by default 4 a module, but at most the batch size.
        in_flight: batches that a module may have begun and the next one not yet taken forward.

    Returns:
        Plain values: the settings, and under ``schedules`` for each way its ``name``, ``devices`` (names),
        ``makespan`` [s], ``speedup`` over backpropagation on one device, ``utilisation`` of every device (share of
        the makespan that it computes), ``wire_bytes``, and ``work``: [device, kind, module, microbatch, start [s],
        end [s]] of every piece of work (``locallearn.plan.schedule.Work``).

    Raises:
        ConfigError: a number is too small, or there are more microbatches than images.
    """
    if microbatches is None:
        microbatches = min(4 * len(cost.reference), cost.batch_size)
    for name, value in (("batches", batches), ("in_flight", in_flight)):
        if value < 1:
            raise ConfigError(name, value, "a whole number of at least 1")
    if not 1 <= microbatches <= cost.batch_size:
        raise ConfigError("microbatches", microbatches, f"1 to {cost.batch_size}, the images of a batch")
    one = run_pipeline(cost, machine, plans.backpropagation(batches), 1, whole=True)
    stages = len(cost.reference)
    gpipe = plans.gpipe(stages, microbatches, batches)
    alternating = plans.one_forward_one_backward(stages, microbatches, batches)
    nodes = [f"module {node.module} group {node.group}" for node in cost.nodes]
    modules = [f"module {k + 1}" for k in range(stages)]
    runs = [
        ("local", nodes, run_local(cost, machine, batches, in_flight)),
        ("backpropagation", ["device"], one),
        ("gpipe", modules, run_pipeline(cost, machine, gpipe, microbatches)),
        ("1f1b", modules, run_pipeline(cost, machine, alternating, microbatches)),
        (
            "data-parallel",
            [f"copy {i + 1}" for i in range(len(nodes))],
            run_copies(cost, machine, batches, len(nodes)),
        ),
    ]
    return {
        "device_flops": machine.device_flops,
        "bandwidth": machine.bandwidth,
        "latency": machine.latency,
        "batches": batches,
        "batch_size": cost.batch_size,
        "microbatches": microbatches,
        "in_flight": in_flight,
        "schedules": [_plain(name, devices, run, one.makespan) for name, devices, run in runs],
    }


def run_local(cost: Cost, machine: Machine, batches: int, in_flight: int) -> Run:
    """Local learning on a device a node; arguments as for ``timeline``."""
    modules = cost.modules
    overlap = any(module.returned_bytes for module in modules)

    def seconds(work: NodeWork) -> float:
        module = modules[work.module - 1]
        again = 2 * module.block_macs if overlap and work.module < len(modules) else 0
        macs = {"F": module.block_macs, "H": module.head_macs, "B": 2 * module.macs, "G": again}[work.kind]
        return machine.seconds(macs * cost.batch_size, work.device, (3 * module.macs + again) * cost.batch_size)

    def message_bytes(need: Need) -> float:
        module = modules[need.work.module - 1]
        if need.what == "read":
            return sum(r.n_bytes for r in cost.reads if (r.reader, r.owner) == (need.reader, need.work.module))
        sizes = {"features": module.output_bytes, "shared": module.shared_bytes, "scores": module.score_bytes}
        if need.what == "gradient":  # each node of the module before is sent what is of its own features
            return module.returned_bytes / modules[need.work.module - 2].groups
        return modules[need.work.module - 2].followed_bytes if need.what == "weights" else sizes[need.what]

    schedule = plans.local(
        [module.groups for module in modules],
        batches,
        in_flight,
        [module.shares_features for module in modules],
        [module.score_bytes > 0 for module in modules],
        [module.followed_bytes > 0 for module in modules],
        sorted({(read.reader, read.owner) for read in cost.reads}),
        overlap,
    )
    return simulate(schedule, seconds, machine.links(message_bytes))


def run_pipeline(
    cost: Cost, machine: Machine, schedule: plans.Schedule, microbatches: int, whole: bool = False
) -> Run:
    """Backpropagation through the reference network, a device a module, or all on one (``whole``)."""
    images = cost.batch_size / microbatches
    macs = [cost.e2e_macs] if whole else [stage.macs for stage in cost.reference]

    def seconds(work: NodeWork) -> float:
        own = macs[work.module - 1]
        return machine.seconds(images * own * (2 if work.kind == "B" else 1), work.device, 3 * cost.batch_size * own)

    def message_bytes(need: Need) -> float:
        # the gradient that module k + 1 sends back is as large as the features of module k
        sender = need.work.module - (1 if need.what == "gradient" else 0)
        return images * cost.reference[sender - 1].features * (2 if cost.precision == "bf16" else 4)

    return simulate(schedule, seconds, machine.links(message_bytes))


def run_copies(cost: Cost, machine: Machine, batches: int, devices: int) -> Run:
    """Data parallelism: a ring all-reduce sends 2 (N - 1) / N of all gradients from each of N devices.

    It takes 2 (N - 1) messages, one after the other.
    """
    images, gradients = cost.batch_size / devices, GRADIENT_BYTES * sum(s.parameters for s in cost.reference)
    reduce = machine.reduce(gradients, devices)

    def seconds(work: NodeWork) -> float:
        if work.kind == "R":
            return reduce
        macs = images * cost.e2e_macs
        return machine.seconds(macs * (2 if work.kind == "B" else 1), work.device, 3 * macs)

    run = simulate(plans.data_parallel(devices, batches), seconds)
    return Run(run.spans, batches * 2 * (devices - 1) * gradients)


def steady_seconds(run: Callable[[int], Run], batches: int) -> float:
    """Seconds a batch once pipelines are full [s], which they are after ``batches`` of them.

    Args:
        run: that many batches.
        batches: a first number of them, and as many again.
    """
    return (run(2 * batches).makespan - run(batches).makespan) / batches


def _plain(name: str, devices: Sequence[str], run: Run, one_device: float) -> dict[str, Any]:
    return {
        "name": name,
        "devices": list(devices),
        "makespan": run.makespan,
        "speedup": one_device / run.makespan,
        "utilisation": [run.busy(device) / run.makespan for device in range(len(devices))],
        "wire_bytes": round(run.wire_bytes),
        "work": [[*span.work, span.start, span.end] for span in run.spans],
    }
