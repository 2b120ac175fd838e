"""Timing things against each other: interleaved, many times, reported by the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one thing.

    Attributes:
        seconds: one per repetition, in the order in which they were taken.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median [s]."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def interleaved(
    things: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call every thing in turn, ``repeats`` times, after two calls each that are not counted.

    Turns rather than blocks: what else the machine does in the meantime then falls on all of them alike.

    Args:
        things: what to time, by name.
        repeats: measurements of each.
        device: a GPU is waited for before and after every measurement.
        clock: tells the time [s].
    """

    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(-2, repeats):
        for name, thing in things.items():
            wait()
            begin = clock()
            thing()
            wait()
            if turn >= 0:
                seconds[name].append(clock() - begin)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster ``fast`` is: the median over turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))
