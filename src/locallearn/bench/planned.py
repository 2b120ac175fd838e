"""One step of a planned network, predicted and measured on this machine, module by module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from locallearn.bench.timing import interleaved
from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.costs.footprint import state_bytes, working_bytes
from locallearn.costs.nodes import Cost
from locallearn.data.store import Batch
from locallearn.training.optim import build_optimizer


def measure(
    config: RunConfig, counted: Cost, image: ImageShape, device: torch.device, repeats: int
) -> dict[str, Any]:
    """Train some steps on random images, and compare with the prediction.

    All groups of a module run together here, as they do in one process. The rate of the device is that of the same
    network's end-to-end step, timed in turns with the modules.

    Returns:
        ``device_flops``: operations a second of the end-to-end step; ``e2e_seconds``; and ``modules``, for each
        ``module``, ``predicted_seconds``, ``seconds`` (median), ``spread`` (quartile distance over median),
        ``predicted_bytes`` and ``bytes`` (state, and the peak of what a step allocates).
    """
    train = dataclasses.replace(config.train, batch_size=counted.batch_size, precision=counted.precision)
    config = dataclasses.replace(config, train=train)
    whole = dataclasses.replace(config, method="e2e", depth=1, width=(1,), objective=ObjectiveConfig())
    batch = _batch(image, counted.batch_size, device)
    e2e, steps = _steps(whole, image, device)[0], _steps(config, image, device)
    inputs, features = [], batch.images
    for step in steps:
        inputs.append(features)
        features, _ = step(features, batch)
    things = {"e2e": lambda: e2e(batch.images, batch)}
    things |= {step.module.name: lambda s=step, x=x: s(x, batch) for step, x in zip(steps, inputs, strict=True)}
    times = interleaved(things, repeats, device)
    flops = 6 * counted.e2e_macs * counted.batch_size / times["e2e"].median
    rows = []
    for step, given in zip(steps, inputs, strict=True):
        row = {"module": step.module.name, "seconds": times[step.module.name].median}
        row |= {"spread": times[step.module.name].spread, "bytes": _bytes(step, given, batch, device)}
        rows.append(row)
    return {
        "device_flops": flops,
        "e2e_seconds": times["e2e"].median,
        "modules": _predict(rows, counted, config, flops),
    }


def _predict(rows: list[dict[str, Any]], counted: Cost, config: RunConfig, flops: float) -> list[dict[str, Any]]:
    """Put the prediction beside every measurement; the decoupled classifier belongs to the last module's nodes."""
    if rows[-1]["module"] == "classifier":
        classifier = rows.pop()
        rows[-1]["seconds"] += classifier["seconds"]
    for row, module in zip(rows, counted.modules, strict=True):
        row["predicted_seconds"] = 6 * module.groups * module.macs * counted.batch_size / flops
        row["predicted_bytes"] = (
            state_bytes(config.optimizer, module.groups * module.parameters)
            + module.groups * module.activation_bytes
            + working_bytes(module)
        )
    return rows


def _steps(config: RunConfig, image: ImageShape, device: torch.device) -> list[LocalStep]:
    network = build_network(config, image).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [
        LocalStep(m, build_optimizer(config.optimizer, m.parameters(), m.groups), str(config.train.precision))
        for m in network
    ]


def _batch(image: ImageShape, batch_size: int, device: torch.device) -> Batch:
    images = torch.rand(batch_size, *image.sizes, device=device)
    images = images.to(memory_format=torch.channels_last)
    return Batch(images, torch.randint(image.classes, (batch_size,), device=device), images, 0)


def _bytes(step: LocalStep, given: torch.Tensor, batch: Batch, device: torch.device) -> int:
    """Weights and optimizer state, and the peak of what a step allocates, gradients with it [bytes]."""
    step.optimizer.zero_grad(set_to_none=True)
    held = [t for p in step.module.parameters() for t in (p, *step.optimizer.state[p].values())]
    state = sum(t.nbytes for t in held if isinstance(t, torch.Tensor))
    return state + allocated_peak(lambda: step(given, batch), device)


def allocated_peak(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes that are allocated at once while ``call`` runs, beyond those that were before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, live)
    return peak
