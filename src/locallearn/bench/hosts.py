"""Throughput of several hosts by what lies between them: latency and bandwidth of the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from locallearn.bench.crew import Crew, Host
from locallearn.bench.predicted import LinkSpeed, predict
from locallearn.bench.processes import CrewPlan, Laps, jobs_of, measure_link, medians
from locallearn.bench.trainers import TimedJob
from locallearn.bench.wire import INTERFACE, Hosts, address

FIRST_PORT = 29400
"""Crews meet at this port and those after it, in a namespace of their own."""

Condition = tuple[float, float | None]
"""Latency [s] and bandwidth [bytes/s; None: no limit] of the cable."""


def bench_hosts(plan: CrewPlan, conditions: Sequence[Condition], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure the cells and the peers of ``plan`` that use as many processes as hosts, under every condition.

    Everything is in turns: in every turn all conditions, and under each of them all contenders; ``tell`` is called
    with what is being done.

    Returns:
        A row for every condition and contender: ``latency``, ``bandwidth``, ``name``, ``images_per_second`` (median),
        ``spread`` (quartile distance over median), ``waiting`` (as ``bench_distributed`` has it),
        ``predicted_images_per_second`` and ``deviation`` (as ``predict`` has them).

    Raises:
        LocalLearnError: there can be no hosts on this machine, or a process failed.
    """
    jobs = {name: job for name, job in jobs_of(plan).items() if job.config.mesh.size == plan.processes}
    with Hosts(plan.processes) as hosts, contextlib.ExitStack() as stack:
        crews = {}
        for port, (name, job) in enumerate(jobs.items(), start=FIRST_PORT):
            crews[name] = Crew(name, job, plan.timeout, [_host(each, port) for each in hosts.names])
            stack.callback(crews[name].close)
        for crew in crews.values():
            crew.answers()
        own = {name: Laps(crew, plan) for name, crew in crews.items()}
        for name, laps in own.items():
            tell(f"warming up: {name}")
            laps.turn()  # not counted
            laps.turn_of_parts()
        link = measure_link(crews)
        laps_of = {(c, name): Laps(crew, plan) for c in conditions for name, crew in crews.items()}
        for turn in range(plan.setting.repeats):
            for number, condition in enumerate(conditions, start=1):
                hosts.set(*condition)
                for name in crews:
                    tell(f"turn {turn + 1} of {plan.setting.repeats}, cable {number} of {len(conditions)}: {name}")
                    laps_of[condition, name].turn()
            hosts.set(0.0, None)
            for laps in own.values():
                laps.turn_of_parts()
    rows = []
    for (condition, name), laps in laps_of.items():
        parts, cable = medians(own[name].apart), _link(condition, link)
        rows.append(_row(condition, jobs[name], laps) | predict(jobs[name], parts, laps.timing.median, cable))
    return rows


def _host(namespace: str, port: int) -> Host:
    names = {"MASTER_ADDR": address(0), "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": INTERFACE}
    # the first process itself keeps the store where they find each other
    return Host(("ip", "netns", "exec", namespace), {**names, "TORCHELASTIC_USE_AGENT_STORE": "False"})


def _link(condition: Condition, measured: LinkSpeed | None) -> LinkSpeed:
    """What the cable is under a condition; without a limit it is as fast as the program that it is."""
    latency, bandwidth = condition
    if measured is None:
        return LinkSpeed(bandwidth or float("inf"), latency)
    return LinkSpeed(min(bandwidth or float("inf"), measured.bandwidth), latency + measured.latency)


def _row(condition: Condition, job: TimedJob, laps: Laps) -> dict[str, Any]:
    return {
        "latency": condition[0],
        "bandwidth": condition[1],
        "name": laps.crew.name,
        "images_per_second": job.setting.batch_size / laps.timing.median,
        "spread": laps.timing.spread,
        "seconds": list(laps.seconds),
        "waiting": medians(laps.waits) if job.way == "distributed" else None,
    }
