"""How fast a module's process goes, and how old its features are: sums over the steps of an epoch."""

from __future__ import annotations

from typing import Any

from locallearn.runtime.boundary import Message
from locallearn.runtime.replay import Sample


def new_pace() -> dict[str, float]:
    """The sums before the first step."""
    return {"steps": 0, "seconds": 0.0, "waited": 0.0, "staleness": 0, "largest_staleness": 0, "uses": 0}


def note(pace: dict[str, float], sample: Sample[Message] | None) -> None:
    """Add how old a batch's features are [batches], and how often they were used before."""
    pace["steps"] += 1
    if sample is not None:
        pace["staleness"] += sample.staleness
        pace["largest_staleness"] = max(pace["largest_staleness"], sample.staleness)
        pace["uses"] += sample.uses


def told(pace: dict[str, float], dropped: int) -> dict[str, Any]:
    """What the record has of an epoch's pace, for every node of the module.

    Args:
        pace: the sums.
        dropped: batches that came and were never used.
    """
    steps = pace["steps"]
    return {
        "steps": steps,
        "seconds": pace["seconds"],
        "waited_seconds": pace["waited"],
        "staleness": pace["staleness"] / steps,
        "largest_staleness": pace["largest_staleness"],
        "reuse": pace["uses"] / steps,
        "dropped": dropped,
    }
