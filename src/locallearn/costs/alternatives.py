"""The usual ways of training the whole network on the same devices: what they need and how long they take.

All of them compute backpropagation, and so have its accuracy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from locallearn.config import ObjectiveConfig, OptimizerConfig, RunConfig
from locallearn.core.image_shape import ImageShape
from locallearn.costs.footprint import state_bytes, with_spare, working_bytes
from locallearn.costs.nodes import Cost, cost
from locallearn.costs.timeline import Machine, run_copies, run_pipeline
from locallearn.errors import ConfigError
from locallearn.plan import schedule as plans
from locallearn.plan.clock import Run


@dataclass(frozen=True)
class Alternative:
    """Backpropagation in one of the usual ways.

    Attributes:
        name: ``backpropagation``, ``accumulation``, ``smaller-batch``, ``checkpointing``, ``gpipe``, ``1f1b`` or
            ``data-parallel``.
        parts: what the network is cut into (segments, or stages), or a batch that gradients are accumulated over.
        devices: that take part.
        memory: what the fullest one needs [bytes].
        makespan: of all batches, or of as many images in smaller ones [s].
        wire_bytes: sent by all devices in that time.
        batch_size: that an update follows [images].
    """

    name: str
    parts: int
    devices: int
    memory: int
    makespan: float
    wire_bytes: int = 0
    batch_size: int = 0


def usual_ways(
    cut_into: Callable[[int], Cost],
    optimizer: OptimizerConfig,
    *,
    machine: Machine,
    devices: int,
    depths: Sequence[int],
    batches: int = 8,
    microbatches: int | None = None,
) -> list[Alternative]:
    """Predict backpropagation on one device, by parts of a batch, checkpointed, in a pipeline and data-parallel.

    Args:
        cut_into: costs of the network in so many parts, each with as small a head as there is (``stages``); it
            refuses what cannot be cut so with a ``ConfigError``.
        optimizer: of the whole network.
        machine: the devices.
        devices: how many there are.
        depths: numbers of segments and stages to try.
        batches: of the predicted run.
        microbatches: parts of a batch in pipelines; by default 4 a stage, at most the batch size.
    """
    whole = cut_into(1)
    found = [_alone(whole, optimizer, machine, batches), *_parts(whole, optimizer, machine, batches)]
    for depth in sorted(set(depths) - {1}):
        try:
            cut = cut_into(depth)
        except ConfigError:  # more parts than the network has blocks
            continue
        found.append(_checkpointing(cut, optimizer, machine, batches))
        if depth <= devices:
            parts = min(microbatches or 4 * depth, cut.batch_size)
            found += _pipelines(cut, optimizer, machine, batches, parts)
    images = -(-whole.batch_size // devices)
    if devices > 1 and images > 1:  # batch norm needs two images
        found.append(_copies(whole, optimizer, machine, batches, devices))
    return [one if one.batch_size else dataclasses.replace(one, batch_size=whole.batch_size) for one in found]


def stages(config: RunConfig, image: ImageShape, depth: int) -> Cost:
    """The network cut into ``depth`` parts, each with the smallest head that there is in place of none."""
    plain = ObjectiveConfig(head="0c1f")
    return cost(dataclasses.replace(config, method="dgl", depth=depth, width=(1,), objective=plain), image)


def _alone(whole: Cost, optimizer: OptimizerConfig, machine: Machine, batches: int) -> Alternative:
    module = whole.modules[0]
    memory = state_bytes(optimizer, module.parameters) + module.activation_bytes
    memory += working_bytes(module)
    run = run_pipeline(whole, machine, plans.backpropagation(batches), 1, whole=True)
    return Alternative("backpropagation", 1, 1, with_spare(memory), run.makespan)


def _parts(whole: Cost, optimizer: OptimizerConfig, machine: Machine, batches: int) -> list[Alternative]:
    """A half, a quarter... of a batch at a time, down to the two images that batch norm needs.

    An update follows the whole batch (accumulation), or each part.
    """
    module, found = whole.modules[0], []
    makespan = run_pipeline(whole, machine, plans.backpropagation(batches), 1, whole=True).makespan
    parts = 2
    while whole.batch_size // parts >= 2:
        images = -(-whole.batch_size // parts)
        kept = module.activation_bytes * images // whole.batch_size
        memory = state_bytes(optimizer, module.parameters) + kept + working_bytes(module, images / whole.batch_size)
        found += [
            Alternative("accumulation", parts, 1, with_spare(memory), makespan),
            Alternative("smaller-batch", 1, 1, with_spare(memory), makespan, batch_size=images),
        ]
        parts *= 2
    return found


def _checkpointing(cut: Cost, optimizer: OptimizerConfig, machine: Machine, batches: int) -> Alternative:
    """Keeps what goes into each segment, and computes a segment again before its backward pass."""
    kept = sum(module.output_bytes for module in cut.modules[:-1])
    peak = max(m.activation_bytes + working_bytes(m) for m in cut.modules)
    memory = state_bytes(optimizer, sum(stage.parameters for stage in cut.reference)) + kept + peak
    once = run_pipeline(cut, machine, plans.backpropagation(batches), 1, whole=True).makespan
    return Alternative("checkpointing", len(cut.modules), 1, with_spare(memory), once * 4 / 3)


def _pipelines(
    cut: Cost, optimizer: OptimizerConfig, machine: Machine, batches: int, microbatches: int
) -> list[Alternative]:
    """GPipe holds every microbatch of a batch; stage k of K holds K - k + 1 of them in 1F1B."""
    n = len(cut.modules)

    def memory(alive: Sequence[int]) -> int:
        return max(
            state_bytes(optimizer, stage.parameters)
            + held * module.activation_bytes // microbatches
            + working_bytes(module, 1 / microbatches)
            for stage, module, held in zip(cut.reference, cut.modules, alive, strict=True)
        )

    def predicted(name: str, run: Run, alive: Sequence[int]) -> Alternative:
        return Alternative(name, n, n, with_spare(memory(alive)), run.makespan, round(run.wire_bytes))

    gpipe = run_pipeline(cut, machine, plans.gpipe(n, microbatches, batches), microbatches)
    turns = run_pipeline(cut, machine, plans.one_forward_one_backward(n, microbatches, batches), microbatches)
    return [
        predicted("gpipe", gpipe, [microbatches] * n),
        predicted("1f1b", turns, [min(n - k, microbatches) for k in range(n)]),
    ]


def _copies(whole: Cost, optimizer: OptimizerConfig, machine: Machine, batches: int, devices: int) -> Alternative:
    module = whole.modules[0]
    images = -(-whole.batch_size // devices)
    part = module.activation_bytes * images // whole.batch_size
    memory = state_bytes(optimizer, module.parameters) + part + working_bytes(module, images / whole.batch_size)
    run = run_copies(whole, machine, batches, devices)
    return Alternative("data-parallel", 1, devices, with_spare(memory), run.makespan, round(run.wire_bytes))


def fastest(others: Sequence[Alternative], memory: int) -> Alternative | None:
    """The fastest of the usual ways that fits, and of equally fast ones the first."""
    return min((one for one in others if one.memory <= memory), key=lambda one: one.makespan, default=None)


def advice(proposed: float | None, others: Sequence[Alternative], memory: int) -> list[str]:
    """What the usual ways say about a plan, in words.

    Args:
        proposed: makespan of the proposal [s]; None where no K x G network fits.
        others: the usual ways.
        memory: of each device [bytes].
    """
    best = fastest(others, memory)
    if best is None:
        return ["No way of backpropagation fits this memory."]
    what, kept = _in_words(best)
    if proposed is None:
        return [f"No K x G network fits. Use {what}: it does, and {kept}."]
    ratio = best.makespan / proposed
    if ratio <= 1:
        return [f"Use {what}: it fits, is predicted {1 / ratio:.2f} times as fast, and {kept}."]
    return [
        f"The fastest way of backpropagation that fits is {what}: {ratio:.2f} times the proposal's time; it {kept}."
    ]


def _in_words(one: Alternative) -> tuple[str, str]:
    """What it is, and what becomes of the accuracy."""
    images = -(-one.batch_size // one.parts)
    if one.name == "accumulation":
        seen = f"loses no accuracy but what batch norm loses on {images} images at a time"
        return f"accumulation over {one.parts} batches of {images} images", seen
    if one.name == "smaller-batch":
        return f"batches of {one.batch_size} images", "loses no accuracy with a rate that fits them"
    return one.name + (f" in {one.parts} parts" if one.parts > 1 else ""), "loses no accuracy"
