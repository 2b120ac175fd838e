"""The cost model's timeline, calibrated by what each process computes, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from locallearn.bench.own_jobs import own_cost
from locallearn.bench.trainers import TimedJob
from locallearn.costs.nodes import Cost, cost
from locallearn.costs.timeline import Machine, run_copies, run_local, run_pipeline, steady_seconds
from locallearn.plan import schedule as plans
from locallearn.plan.clock import Run

_BATCHES = 16
"""Batches of a prediction; from the second half the steady state is told."""


class LinkSpeed(NamedTuple):
    """A link between two processes: ``bandwidth`` [bytes/s] and ``latency`` [s]."""

    bandwidth: float
    latency: float


def link_of(small: Sequence[float], large: Sequence[float], n_bytes: int) -> LinkSpeed:
    """From seconds of sending a few bytes, and ``n_bytes``, there and back again and again."""
    latency = statistics.median(small) / 2
    return LinkSpeed(n_bytes / max(statistics.median(large) / 2 - latency, 1e-9), latency)


def _counted(job: TimedJob) -> Cost:
    setting = job.setting
    if job.own is not None:
        return own_cost(job.own, setting.precision)
    return cost(job.config, setting.image, batch_size=setting.batch_size, precision=setting.precision)  # type: ignore[arg-type]


def predict(job: TimedJob, part_seconds: Sequence[float], measured: float, link: LinkSpeed | None) -> dict[str, Any]:
    """What the timeline makes of the measured parts of a step.

    Args:
        job: what was measured.
        part_seconds: of every process's part of a step, while the others do theirs.
        measured: seconds of a step.
        link: between processes; None where it costs nothing.

    Returns:
        ``predicted_images_per_second``, and ``deviation`` of the measured step from the predicted one, relative to
        it; both None where one process does all.
    """
    if not part_seconds:
        return {"predicted_images_per_second": None, "deviation": None}
    batch_size = job.setting.batch_size
    counted = _counted(job)
    machine = Machine(
        bandwidth=link.bandwidth if link else None,
        latency=link.latency if link else 0.0,
        step_seconds=tuple(part_seconds),
    )

    def run(batches: int) -> Run:
        if job.way == "distributed":
            return run_local(counted, machine, batches, job.config.mesh.in_flight)
        if job.way == "ddp":
            return run_copies(counted, machine, batches, len(part_seconds))
        schedule = plans.gpipe if job.way == "gpipe" else plans.one_forward_one_backward
        return run_pipeline(
            counted, machine, schedule(len(part_seconds), job.microbatches, batches), job.microbatches
        )

    seconds = steady_seconds(run, _BATCHES // 2)
    if job.way in ("1f1b", "gpipe"):  # gradients of tied weights are added up at the end of each batch
        seconds += sum(machine.reduce(read.n_bytes, 2) for read in counted.reads if read.tied)
    return {"predicted_images_per_second": batch_size / seconds, "deviation": measured / seconds - 1}
