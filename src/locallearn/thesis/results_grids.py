"""The thesis's tables and figures with published and measured values side by side, as text and Markdown.

Everything comes as plain data (``Study``): nothing here knows which cells there are or how they are trained.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from locallearn.report.compare import MISSING, Measured, number
from locallearn.thesis.results_curves import MeasuredCurve, caption, measured_curves

ACCURACIES = ("last_layer", "ensemble", "linear_probe", "held_out", "last_heads")
"""Fields that are accuracies, measured once a seed; the others are counted."""


class _CostField(NamedTuple):
    """A cost in a record: how it is read, None where the record lacks it, and decimals that are shown."""

    read: Callable[[Mapping[str, Any]], float | None]
    digits: int


def _step(record: Mapping[str, Any]) -> float | None:
    rate = record.get("images_per_second")
    return None if rate is None else 1000 * record["config"]["train"]["batch_size"] / rate


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


_COSTS = {
    "largest_node": _CostField(lambda record: record["macs"]["largest_node"] / 1e6, 2),
    "activations": _CostField(lambda record: _scaled(record.get("memory", {}).get("activation_bytes"), 2**20), 1),
    "parameters": _CostField(lambda record: _scaled(record.get("parameters"), 1000), 0),
    "step": _CostField(_step, 0),
    "traffic": _CostField(lambda record: _scaled(record.get("traffic_bytes"), 2**20), 1),
}
"""Costs by field. Time and memory are the newest record's, on the machine that it names."""

_COLUMNS = 10
"""A table of a curve has at most about this many of its places."""


class StudyData(TypedDict):
    """What was trained with one protocol.

    Attributes:
        name: of the protocol.
        description: of the protocol, in a sentence.
        tables: dictionaries with name, title, corner, columns, and rows: label and values, each None or a
            dictionary with cell, field and published (text as printed, or None).
        figures: dictionaries with name, title, and panels: title and points, each a dictionary with cell, method,
            label, field and published.
        curves: figures of curves: dictionaries with name, title, and panels: title, field, and lines, each a
            dictionary with cell and label.
        claims: dictionaries with claim, verdict and numbers (lines).
        measured: comparable records by cell.
        notes: lines about records that were left out.
    """

    name: str
    description: str
    tables: Sequence[Mapping[str, Any]]
    figures: Sequence[Mapping[str, Any]]
    curves: Sequence[Mapping[str, Any]]
    claims: Sequence[Mapping[str, Any]]
    measured: Measured
    notes: Sequence[str]


class Shown(NamedTuple):
    """A value of a table as text. ``seeds`` is None where nothing is measured, and for what is counted."""

    published: str
    measured: str
    spread: str
    difference: str
    seeds: int | None


class Grid(NamedTuple):
    """A table or a figure's points as text: a heading for each column, and rows of a label and values."""

    name: str
    title: str
    headings: list[str]
    rows: list[tuple[str, list[Shown | str]]]
    note: str = ""


def numbers(records: Sequence[Mapping[str, Any]], field: str) -> list[float]:
    """One number a seed: accuracy in percent, or a speed-up.

    Raises:
        ValueError: the records are of different configurations, which are never put together.
    """
    digests = {record["digest"] for record in records}
    if len(digests) > 1:
        raise ValueError(f"{records[0]['cell']}: records of different configurations: {', '.join(sorted(digests))}")
    if field in ACCURACIES:
        return [100 * record["accuracy"][field] for record in records if field in record["accuracy"]]
    if field in _COSTS:
        found = [_COSTS[field].read(record) for record in records]
        return [value for value in found if value is not None][-1:]
    return [record[field] for record in records][-1:]  # counted, not measured: seeds do not matter


def show(value: Mapping[str, Any] | None, measured: Measured) -> Shown | str:
    """A value of a table: published, mean over seeds, standard deviation over them, difference."""
    if value is None:
        return ""
    field, published = value["field"], value["published"]
    found = numbers(measured.get(value["cell"], ()), field)
    if not found:
        return Shown(published or MISSING, MISSING, "", "", None)
    is_accuracy = field in ACCURACIES
    digits = 2 if is_accuracy else _COSTS[field].digits if field in _COSTS else 3
    mean = statistics.mean(found)
    spread = f"± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    difference = "" if published is None else _signed(round(mean, digits) - float(published), digits)
    return Shown(published or MISSING, f"{mean:.{digits}f}", spread, difference, len(found) if is_accuracy else None)


def _signed(value: float, digits: int) -> str:
    """With its sign, where it does not round to zero."""
    rounded = round(value, digits) + 0.0  # no negative zero
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{rounded:.{digits}f}"


def table_grid(table: Mapping[str, Any], measured: Measured) -> Grid:
    """A table with everything that is measured of it."""
    rows = [(row["label"], [show(value, measured) for value in row["values"]]) for row in table["rows"]]
    return Grid(table["name"], table["title"], [table["corner"], *table["columns"]], rows, table.get("note", ""))


def without_empty_rows(grid: Grid) -> Grid:
    """The grid for a page: rows in which nothing was measured or published are named in its note instead."""
    empty = [label for label, values in grid.rows if not any(_is_told(value) for value in values)]
    note = f"Not measured yet: {'; '.join(empty)}." if empty else ""
    rows = [row for row in grid.rows if row[0] not in empty]
    return grid._replace(rows=rows, note=" ".join(filter(None, (grid.note, note))))


def _is_told(value: Shown | str) -> bool:
    return not {value} <= {"", MISSING} if isinstance(value, str) else {value.measured, value.published} != {MISSING}


def figure_grid(figure: Mapping[str, Any], panel: Mapping[str, Any], measured: Measured) -> Grid:
    """The points of one panel of a figure, as a table."""
    rows = []
    for point in panel["points"]:
        records = measured.get(point["cell"], ())
        macs = records[-1]["macs"] if records else {}
        millions = [number(macs[key] / 1e6, 3) if macs else MISSING for key in ("largest_node", "inference")]
        rows.append((point["label"], [*millions, show(point, measured)]))
    headings = ["Network", "Largest node [million MACs]", "Inference [million MACs]", "Accuracy [%]"]
    return Grid(figure["name"], panel["title"], headings, rows)


def curve_grid(figure: Mapping[str, Any], panel: Mapping[str, Any], measured: Measured) -> Grid:
    """A panel as a table: a row for each network, a column for each place (every nth, where there are many)."""
    curves = measured_curves(panel, measured)
    places = sorted({place for curve in curves for place in curve.x})
    every = max(1, round(len(places) / _COLUMNS))
    shown = places[::-1][::every][::-1]  # the last one is always there
    rows: list[tuple[str, list[Shown | str]]] = [
        (f"{curve.label} ({curve.seeds})", [_text(curve, place) for place in shown]) for curve in curves
    ]
    return Grid(figure["name"], caption(panel), ["network (seeds)", *map(str, shown)], rows)


def _text(curve: MeasuredCurve, place: int) -> str:
    if place not in curve.x:
        return MISSING
    at = curve.x.index(place)
    return f"{curve.y[at]:.2f}" + (f" ± {curve.spread[at]:.2f}" if curve.seeds > 1 else "")


def grids(study: StudyData) -> list[Grid]:
    """Every table of a study and every panel that has something measured in it, as grids."""
    measured = study["measured"]
    found = [table_grid(table, measured) for table in study["tables"]] + [
        figure_grid(figure, panel, measured)
        for figure in study["figures"]
        for panel in figure["panels"]
        if any(measured.get(point["cell"]) for point in panel["points"])
    ]
    curves = [curve_grid(figure, panel, measured) for figure in study["curves"] for panel in figure["panels"]]
    return found + [grid for grid in curves if grid.rows]


LEGEND = (
    "In each cell: the measured mean, its standard deviation over seeds, and their number in brackets; then the "
    "published value and the difference to it. A dash: not measured, or not published."
)

BANDS = "Lines are means over seeds; a band is their standard deviation, where there are several."
"""What curves are."""


def in_lines(value: Shown | str, strong: str = "") -> list[str]:
    """A value as one or two lines of text; ``strong`` is put around the measured mean."""
    if isinstance(value, str):
        return [value]
    mean = value.measured if value.measured == MISSING else f"{strong}{value.measured}{strong}"
    seeds = f"({value.seeds})" if value.seeds else ""
    return [
        " ".join(filter(None, (mean, value.spread, seeds))),
        " ".join((value.published, value.difference)).strip(),
    ]


def provenance(measured: Measured) -> list[str]:
    """Where the records come from, one line for each machine, version, commit and data set, with their number."""
    found: dict[str, int] = {}
    for record in (record for records in measured.values() for record in records):
        hardware, versions = record.get("hardware") or {}, record.get("versions") or {}
        machine = hardware.get("gpu") or f"{hardware.get('cpu', MISSING)}, {hardware.get('cores', MISSING)} cores"
        count = hardware.get("threads", MISSING)
        threads = f"{count} thread{'' if count == 1 else 's'} a cell"
        software = ", ".join(f"{name} {version}" for name, version in versions.items())
        where = f"commit {record.get('commit', MISSING)}", str(record.get("data_source", MISSING))
        line = "; ".join((machine, threads, software, *where))
        found[line] = found.get(line, 0) + 1
    return [f"{count} record{'s' if count > 1 else ''}: {line}" for line, count in found.items()]


def markdown(study: StudyData, pictures: Mapping[str, str] | None = None) -> str:
    """The tables, figures' points and claims of a study as Markdown.

    Args:
        study: what to show.
        pictures: paths of pictures, as seen from the file, by the title of the grid that they stand under.
    """
    parts = [f"## Protocol `{study['name']}`", study["description"], LEGEND]
    for grid in map(without_empty_rows, grids(study)):
        lines = [f"### {grid.name.replace('-', ' ').capitalize()}. {grid.title}", ""]
        lines += [grid.note, ""] if grid.note else []
        lines.append("| " + " | ".join(grid.headings) + " |")
        lines.append("| --- |" + " ---: |" * (len(grid.headings) - 1))
        for label, values in grid.rows:
            lines.append(f"| {label} | " + " | ".join("<br>".join(in_lines(v, "**")) for v in values) + " |")
        if pictures and grid.title in pictures:
            lines += ["", f"![{grid.title}]({pictures[grid.title]})", "", BANDS]
        parts.append("\n".join(lines))
    if study["claims"]:
        parts.append("### Claims")
        for claim in study["claims"]:
            parts.append(f"- **{claim['verdict']}**: {claim['claim']}")
            parts[-1] += "".join(f"\n  - {line}" for line in claim["numbers"])
    if study["measured"]:
        parts.append(
            "### Where it was measured\n\n" + "\n".join(f"- {line}" for line in provenance(study["measured"]))
        )
    if study["notes"]:
        parts.append("### Left out\n\n" + "\n".join(f"- {note}" for note in study["notes"]))
    return "\n\n".join(parts) + "\n"
