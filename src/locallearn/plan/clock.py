"""The time that a schedule takes, and its picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from locallearn.plan.schedule import Need, NodeWork, Schedule


class Span(NamedTuple):
    """A piece of work and when it is done [s]."""

    work: NodeWork
    start: float
    end: float


class Slow(NamedTuple):
    """What one device's messages have instead: ``bandwidth`` [bytes/s] and ``latency`` [s]."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Links:
    """Links between devices.

    A device sends one message after the other and computes meanwhile; it receives without limit.

    Attributes:
        message_bytes: size of what a ``Need`` names [bytes].
        bandwidth: of what one device sends [bytes/s].
        latency: from the last byte sent to its arrival [s].
        slow: devices whose messages have another bandwidth and latency.
    """

    message_bytes: Callable[[Need], float]
    bandwidth: float = float("inf")
    latency: float = 0.0
    slow: Mapping[int, Slow] = field(default_factory=dict)

    def of(self, device: int) -> Slow:
        """Bandwidth and latency of what a device sends."""
        return self.slow.get(device, Slow(self.bandwidth, self.latency))


@dataclass(frozen=True)
class Run:
    """When everything happens (device by device, in order), and the bytes that were sent."""

    spans: tuple[Span, ...]
    wire_bytes: float

    @property
    def makespan(self) -> float:
        """From the first start to the last end [s]."""
        return max(span.end for span in self.spans)

    def busy(self, device: int, kinds: str = "FHBG") -> float:
        """Seconds that a device computes."""
        return sum(s.end - s.start for s in self.spans if s.work.device == device and s.work.kind in kinds)


def simulate(schedule: Schedule, seconds: Callable[[NodeWork], float], links: Links | None = None) -> Run:
    """Run a schedule on a clock: every device does its work in order, each piece as soon as it has what it needs.

    Args:
        schedule: what to do.
        seconds: how long a piece of work takes [s].
        links: what messages cost; by default they cost nothing.

    Raises:
        ValueError: the work waits for itself.
    """
    state = _Clock(schedule, links or Links(lambda _: 0.0))
    waiting = {device: list(reversed(items)) for device, items in enumerate(schedule.order)}
    moved = True
    while moved:
        moved = False
        for items in waiting.values():
            while items and all(need.work in state.ends for need in schedule.needs[items[-1]]):
                work = items.pop()
                state.do(work, seconds(work))
                moved = True
    if any(waiting.values()):
        raise ValueError(f"the schedule never ends: {next(i[-1] for i in waiting.values() if i)} waits for itself")
    spans = sorted(state.spans, key=lambda span: span.work.device)
    return Run(tuple(spans), state.wire_bytes)


class _Clock:
    """Time on every device and every link."""

    def __init__(self, schedule: Schedule, links: Links) -> None:
        self.needs, self.links = schedule.needs, links
        self.spans: list[Span] = []
        self.ends: dict[NodeWork, float] = {}
        self.wire_bytes = 0.0
        self._free = [0.0] * len(schedule.order)
        self._link_free = [0.0] * len(schedule.order)
        self._arrivals: dict[tuple[Need, int], float] = {}
        self._receivers: dict[NodeWork, list[tuple[Need, int]]] = {}
        for work, needs in schedule.needs.items():
            for need in needs:
                receiver = (need, work.device)
                receivers = self._receivers.setdefault(need.work, [])
                if need.what and need.work.device != work.device and receiver not in receivers:
                    receivers.append(receiver)

    def do(self, work: NodeWork, seconds: float) -> None:
        """Do a piece of work whose needs are done, and send what others need of it."""
        ready = [self._arrivals.get((need, work.device), self.ends[need.work]) for need in self.needs[work]]
        start = max([self._free[work.device], *ready])
        end = start + seconds
        self.spans.append(Span(work, start, end))
        self.ends[work] = self._free[work.device] = end
        for need, device in self._receivers.get(work, ()):
            size = self.links.message_bytes(need)
            begin, (bandwidth, latency) = max(end, self._link_free[work.device]), self.links.of(work.device)
            self._link_free[work.device] = begin + size / bandwidth
            self._arrivals[need, device] = self._link_free[work.device] + latency
            self.wire_bytes += size


def picture(spans: Sequence[Span], columns: int = 72, names: Sequence[str] | None = None) -> str:
    """Draw when devices work: a line a device, a column a slice of time.

    A column holds the kind of work that takes most of its slice, or a dot where that is none.

    Args:
        spans: what is done when.
        columns: width of the drawing [characters].
        names: of the devices; ``device 0``, ... by default.
    """
    begin, end = min(span.start for span in spans), max(span.end for span in spans)
    n_devices = 1 + max(span.work.device for span in spans)
    names = names or [f"device {device}" for device in range(n_devices)]
    width = max(len(name) for name in names)
    scale = columns / (end - begin) if end > begin else 0.0
    lines = []
    for device, name in enumerate(names):
        slices = [{".": 1.0, **dict.fromkeys("FHBR", 0.0)} for _ in range(columns)]
        for span in (span for span in spans if span.work.device == device):
            start, stop = (span.start - begin) * scale, (span.end - begin) * scale
            for column in range(int(start), min(columns, math.ceil(stop))):
                part = min(stop, column + 1) - max(start, column)
                slices[column][span.work.kind] += part
                slices[column]["."] -= part
        lines.append(f"{name:{width}} |{''.join(max(part, key=part.__getitem__) for part in slices)}|")
    return "\n".join(lines)
