"""Reading back what a run wrote, for those who go on with it; damage is found and named, and the rest is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.recorded_node import are_nodes
from locallearn.errors import UsageError
from locallearn.files import check_readable

_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "train": {"epoch": int, "seconds": (int, float), "nodes": list},
    "evaluate": {"epoch": int, "nodes": list},
}
"""What an event must have beside its kind and step to be worth keeping."""

_SUMMARY_FIELDS = {"status": str, "digest": str, "steps": int, "accuracy": dict, "nodes": list}


class DamagedRecordError(UsageError):
    """A file of a run's record is not what this package writes."""


class EventLine(NamedTuple):
    """A line of metrics.jsonl.

    Attributes:
        number: counted from 1.
        text: as it stands there.
        event: what it says; None where it is damaged.
        problem: what is wrong with it.
        cut_short: it is the last one, and a process that was killed while it wrote can have left it.
    """

    number: int
    text: str
    event: dict[str, Any] | None
    problem: str
    cut_short: bool


def read_events(path: Path) -> list[EventLine]:
    """The lines of metrics.jsonl that are not empty; none where the file is not there.

    Raises:
        UsageError: the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        check_readable(path)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    found = []
    for number, text in enumerate(lines, start=1):
        if text.strip():
            event, problem = _event(text)
            found.append(EventLine(number, text, event, problem, number == len(lines) and text.startswith("{")))
    return found


def _event(text: str) -> tuple[dict[str, Any] | None, str]:
    try:
        event = json.loads(text)
    except ValueError as error:
        return None, f"not JSON: {error}"
    except RecursionError:
        return None, "not JSON: too deep"
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None, "not an event"
    for key, kind in ({"step": int} | _FIELDS.get(event["event"], {})).items():
        if not isinstance(event.get(key), kind):
            return None, f"an event without {key}"
    if not are_nodes(event.get("nodes", [])):
        return None, "an event whose nodes are none"
    return event, ""


def read_summary(path: Path) -> dict[str, Any] | None:
    """What summary.json holds, or None where it is not there.

    Raises:
        DamagedRecordError: it is no summary.
    """
    if not path.exists():
        return None
    try:
        check_readable(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedRecordError(f"{path}: cannot be read ({error})") from None
    for key, kind in _SUMMARY_FIELDS.items():
        if not isinstance(found, dict) or not isinstance(found.get(key), kind):
            raise DamagedRecordError(f"{path}: not a summary of a run (no {key})")
    if not are_nodes(found["nodes"]):
        raise DamagedRecordError(f"{path}: not a summary of a run (no nodes)")
    return found
