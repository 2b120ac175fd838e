"""Runs that differ by their seed alone: mean and spread."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from locallearn.config import digest
from locallearn.report.compare import MISSING, comparison_rows, number, percent
from locallearn.report.records import RunRecord

_AVERAGED = ("last_layer", "ensemble", "best_last_layer", "images_per_second", "seconds")


@dataclass(frozen=True)
class SeedGroup:
    """Finished runs of one configuration.

    Attributes:
        names: of the runs.
        seeds: theirs.
        row: of the first run, as ``comparison_rows`` has it.
        means: by key of the rows, where every run tells it.
        spreads: standard deviations over the runs (N - 1), likewise.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    row: dict[str, Any]
    means: dict[str, float]
    spreads: dict[str, float]

    def text(self, key: str) -> str:
        """Mean and spread of an accuracy [%], or of images/s."""
        if key not in self.means:
            return MISSING
        show = percent if key.endswith(("layer", "ensemble")) else number
        return f"{show(self.means[key])} ± {show(self.spreads[key])}"


def seed_groups(records: Sequence[RunRecord]) -> list[SeedGroup]:
    """Two or more finished runs of different seeds whose settings, and whose earlier ones, are the same."""
    found: dict[str, list[tuple[RunRecord, dict[str, Any]]]] = {}
    for record, row in zip(records, comparison_rows(records), strict=True):
        if record.status == "finished":
            summary = record.summary or {}
            history = [entry["digest"] for entry in summary.get("history") or []]
            key = json.dumps([summary.get("digest") or digest(record.config), history, record.protocol])
            found.setdefault(key, []).append((record, row))
    groups = []
    for members in found.values():
        seeds = tuple(record.config.seed for record, _ in members)
        if len(members) < 2 or len(set(seeds)) < len(seeds):
            continue
        rows = [row for _, row in members]
        told = [key for key in _AVERAGED if all(row[key] is not None for row in rows)]
        values = {key: [float(row[key]) for row in rows] for key in told}
        groups.append(
            SeedGroup(
                tuple(record.name for record, _ in members),
                seeds,
                rows[0],
                {key: statistics.mean(values[key]) for key in told},
                {key: statistics.stdev(values[key]) for key in told},
            )
        )
    return groups


def to_csv(records: Sequence[RunRecord]) -> str:
    """The figures of all runs as CSV: a row a run, accuracies as fractions, memory in bytes, time in seconds."""
    rows = comparison_rows(records)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*rows[0], "protocol", "digest"], lineterminator="\n")
    writer.writeheader()
    for record, row in zip(records, rows, strict=True):
        summary = record.summary or {}
        told = {"protocol": record.protocol, "digest": summary.get("digest") or digest(record.config)}
        writer.writerow({**row, "width": " ".join(map(str, row["width"])), **told})
    return buffer.getvalue()
