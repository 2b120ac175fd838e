"""Reading what a training left in its run folder. Nothing here knows how a run is made: records only."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from locallearn.config import RunConfig, from_toml
from locallearn.errors import ConfigError, UsageError
from locallearn.files import check_readable
from locallearn.report import schema

Node = tuple[int | str, int]
"""(module, group): the module is 1..K or ``"classifier"``, the group 1..G."""

NOT_FINISHED = "not finished"


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it. Accuracies are fractions in [0, 1], times are seconds."""

    path: Path
    name: str
    """The folder's name; longer where another run of the same report has it too."""
    config: RunConfig
    started: str | None
    """When the run was started first (ISO 8601)."""
    resumes: int
    """How often it was resumed."""
    nodes: tuple[Node, ...]
    """Every node in order: modules, their groups, and the classifier last."""
    train: list[dict[str, Any]]
    """``train`` events, one an epoch, epochs rising."""
    evaluations: list[dict[str, Any]]
    """``evaluate`` events, epochs rising."""
    summary: dict[str, Any] | None
    """``summary.json``, or ``None`` for a run that is still going or was killed."""
    probes: list[dict[str, Any]]
    """``probe.json`` and every ``probe-NAME.json``, by name."""

    @property
    def protocol(self) -> str:
        """What the accuracies of the last layer are of: ``classifier``, or the neighbours of a kNN evaluation."""
        told = (self.summary or {}).get("accuracy") or (self.evaluations[-1] if self.evaluations else {})
        return told.get("protocol") or "classifier"

    @property
    def status(self) -> str:
        """finished, diverged or interrupted; ``not finished`` where no summary says."""
        return self.summary["status"] if self.summary else NOT_FINISHED


def read_run(path: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        UsageError: not a run folder, or a file in it is damaged; the message names the file and the line.
    """
    config = _read_config(path)
    events = _read_events(path / "metrics.jsonl")
    train, evaluations = _effective(events, "train"), _effective(events, "evaluate")
    starts = [event for event in events if event["event"] == "start"]
    return RunRecord(
        path=path,
        name=_printable(path.resolve().name),
        config=config,
        started=starts[0].get("time") if starts else None,
        resumes=sum(event["event"] == "resume" for event in events),
        nodes=_nodes([*starts, *train, *evaluations]),
        train=train,
        evaluations=evaluations,
        summary=_read_summary(path / "summary.json", last_step=train[-1]["step"] if train else 0),
        probes=[
            _read_json(file, schema.Probe) for file in sorted([*path.glob("probe.json"), *path.glob("probe-*.json")])
        ],
    )


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read several run folders, each once, and give runs in folders of one name longer names.

    Raises:
        UsageError: no folder is given, or ``read_run`` refuses one.
    """
    if not paths:
        raise UsageError("no run folder is given; name at least one")
    records = [read_run(path) for path in {path.resolve(): path for path in paths}.values()]
    length = 1
    names = [record.name for record in records]
    longest = max(len(record.path.resolve().parts) for record in records)
    while len(set(names)) < len(names) and length < longest:
        length += 1
        names = [_printable("/".join(record.path.resolve().parts[-length:])) for record in records]
    return [dataclasses.replace(record, name=name) for record, name in zip(records, names, strict=True)]


def series(events: Iterable[dict[str, Any]], key: str, node: Node | None = None) -> list[float]:
    """One value an event, NaN where there is none: of the event itself, or of one of its nodes."""
    values = []
    for event in events:
        found = event if node is None else node_of(event.get("nodes", []), node)
        value = found.get(key)
        values.append(math.nan if value is None else float(value))
    return values


def node_of(entries: Iterable[dict[str, Any]], node: Node) -> dict[str, Any]:
    """The entry of one node in an event's (or summary's) list; empty where it has none."""
    return next((entry for entry in entries if (entry["module"], entry["group"]) == node), {})


def _read_text(path: Path) -> str:
    try:
        check_readable(path)
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UsageError(f"{path.parent}: no {path.name} there; expected the folder of a run") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _read_config(path: Path) -> RunConfig:
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; expected the folder of a run")
    text = _read_text(path / "config.toml")
    try:
        return from_toml(text)
    except ConfigError as error:
        raise UsageError(f"{path / 'config.toml'}: {error}") from None


def _read_events(path: Path) -> list[dict[str, Any]]:
    lines = _read_text(path).split("\n")
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            if _cut_short(lines, number):
                continue
            raise UsageError(f"{path} line {number}: not JSON ({error})") from None
        kind = event.get("event") if isinstance(event, dict) else None
        if not isinstance(kind, str):
            raise UsageError(f"{path} line {number}: not an event; expected an object with a text under 'event'")
        if kind in schema.EVENTS:
            _check(f"{path} line {number}", schema.EVENTS[kind], event)
        events.append(event)
    return events


def _cut_short(lines: list[str], number: int) -> bool:
    """Whether a process that was killed can have left this line: the file's last, or the one before it resumed."""
    if not lines[number - 1].startswith("{"):
        return False
    if number == len(lines):  # a whole line would have ended, and left an empty one after it
        return True
    try:
        return json.loads(lines[number])["event"] == "resume"
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _effective(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Events of one kind, less those that a resumed run did again: it goes on from an earlier step."""
    kept: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "resume":
            kept = {epoch: old for epoch, old in kept.items() if old["step"] <= event["step"]}
        elif event["event"] == kind:
            kept[event["epoch"]] = event
    return [kept[epoch] for epoch in sorted(kept)]


def _nodes(events: list[dict[str, Any]]) -> tuple[Node, ...]:
    found = {(entry["module"], entry["group"]) for event in events for entry in event.get("nodes", [])}
    return tuple(sorted(found, key=lambda node: (isinstance(node[0], str), node)))


def _read_summary(path: Path, last_step: int) -> dict[str, Any] | None:
    if not path.exists():
        return None
    summary = _read_json(path, schema.Summary)
    # A summary of an interrupted run is out of date once the run has gone on.
    return None if summary.get("steps") is not None and summary["steps"] < last_step else summary


def _read_json(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    _check(str(path), model, value)
    return value


def _check(where: str, model: type[BaseModel], value: Any) -> None:
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UsageError(f"{where}: {field}: {first['msg']}") from None


def _printable(name: str) -> str:
    """The name without characters that no XML file may hold."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
