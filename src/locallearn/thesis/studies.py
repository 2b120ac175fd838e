"""Joins what experiments know (cells, tables, claims) with what reports draw, and shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from locallearn.errors import UsageError
from locallearn.files import make_folder, write_atomically
from locallearn.thesis import claims, judge
from locallearn.thesis import results_grids as drawing
from locallearn.thesis.catalogue import LAYOUTS, cells_of, published_accuracies, table_of_cells
from locallearn.thesis.cell_records import Record, comparable, read_records
from locallearn.thesis.layout import Curves, Figure, Table
from locallearn.thesis.matrix import cells
from locallearn.thesis.protocols import Study
from locallearn.thesis.results_page import lead_picture, pictures, render
from locallearn.thesis.results_summary import points_of, summary

_COLOURS = {judge.AGREES: "green", judge.DISAGREES: "red", judge.CANNOT_TELL: "yellow"}


def _study_folders(folder: Path) -> list[Path]:
    """``folder`` itself, or its sub-folders, where they hold records."""
    return [path for path in (folder, *sorted(folder.glob("*"))) if any(path.glob("*-seed*.json"))]


def read_studies(folder: Path) -> list[drawing.StudyData]:
    """Every study in a folder of results, with the tables that something is measured of.

    Raises:
        UsageError: there are none.
    """
    studies, damaged = [], list[str]()
    for path in _study_folders(folder):
        problems: list[str] = []
        records = read_records(path, problems)
        damaged += problems
        if not records:
            continue
        study = Study(**records[0]["study"])
        trained = {record["cell"] for record in records}
        tables = [name for name in LAYOUTS if trained & set(cells_of(name))]
        studies.append(study_data(study, tables, records, problems))
    if not studies and damaged:
        raise UsageError(damaged[0])
    if not studies:
        raise UsageError(f"{folder}: there are no results there; locallearn reproduce TABLE makes some")
    return studies


def study_data(
    study: Study, tables: Sequence[str], records: Sequence[Record], problems: Sequence[str] = ()
) -> drawing.StudyData:
    """A study as plain data: these tables, figures and single cells, and the claims that they touch.

    Args:
        study: how the cells are trained.
        tables: names of what to show.
        records: what was measured.
        problems: files that are left out, for the notes.
    """
    measured, notes = comparable(records, {name: study.digest(name) for name in cells()})
    layouts = [LAYOUTS[name] for name in tables if name in LAYOUTS]
    single = [name for name in tables if name not in LAYOUTS]
    layouts += [table_of_cells(single)] if single else []
    touched = {cell for name in tables for cell in cells_of(name)}
    printed = published_accuracies()
    verdicts = [judge.check(claim, measured, printed) for claim in claims.CLAIMS if touched & set(claim.cells)]
    return {
        "name": study.name,
        "description": study.description,
        "tables": [dataclasses.asdict(layout) for layout in layouts if isinstance(layout, Table)],
        "figures": [dataclasses.asdict(layout) for layout in layouts if isinstance(layout, Figure)],
        "curves": [dataclasses.asdict(layout) for layout in layouts if isinstance(layout, Curves)],
        "claims": [dataclasses.asdict(verdict) for verdict in verdicts],
        "measured": measured,
        "notes": [*(f"left out: {problem}" for problem in problems), *notes],
    }


def write_html(studies: Sequence[drawing.StudyData], output: Path) -> Path:
    """Write the HTML report of studies and return ``output``."""
    return _write(output, render(studies))


def write_markdown(studies: Sequence[drawing.StudyData], output: Path) -> Path:
    """Write what studies found as Markdown, and its pictures as SVG into a folder beside it; return ``output``."""
    studies = _longest_first(studies)
    picture = None
    lead = max(studies, key=_networks, default=None)  # of several the longest training, which comes first
    if lead and _networks(lead):
        picture = f"{output.stem}/figure-3.5.svg"
        _write(output.parent / picture, lead_picture(lead) + "\n")
    parts = [summary(studies, picture)]
    for study in studies:
        paths = {}
        for title, (name, svg) in pictures(study).items():
            paths[title] = f"{output.stem}/{name}.svg"
            _write(output.parent / paths[title], svg + "\n")
        parts.append(drawing.markdown(study, paths))
    return _write(output, "\n".join(parts))


def _networks(study: drawing.StudyData) -> int:
    """How many networks of the lead picture a study has measured."""
    return sum(point["cell"] in study["measured"] for point in points_of(study))


def _longest_first(studies: Sequence[drawing.StudyData]) -> list[drawing.StudyData]:
    """As the epochs of their records have it."""

    def epochs(study: drawing.StudyData) -> int:
        records = [record for records in study["measured"].values() for record in records]
        return max((record["config"]["train"]["epochs"] for record in records), default=0)

    return sorted(studies, key=epochs, reverse=True)


def _write(path: Path, text: str) -> Path:
    make_folder(path.parent)
    write_atomically(path, text)
    return path


def print_study(console: Console, study: drawing.StudyData) -> None:
    """Print the tables and claims of a study."""
    for grid in drawing.grids(study):
        table = _as_printed(grid)
        needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        console.print(table if needed <= console.width else _one_value_a_row(grid))
    console.print(Text(drawing.LEGEND, style="dim"))
    _print_claims(console, study["claims"])
    for note in study["notes"]:
        console.print(Text(f"left out: {note}"), soft_wrap=True)


def _print_claims(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """Print verdicts and the comparisons behind them, of which those that lack cells are only counted."""
    untold = 0
    for claim in found:
        told = [line for line in claim["numbers"] if not judge.lacks_cells(line)]
        if not told:
            untold += 1
            continue
        console.print(Text.assemble((claim["verdict"], _COLOURS[claim["verdict"]]), f": {claim['claim']}"))
        lacking = len(claim["numbers"]) - len(told)
        if lacking:
            told.append(f"{lacking} more of its comparisons need cells that are not trained yet")
        for line in told:
            console.print(Text(f"  {line}", style="dim"), soft_wrap=True)
    if untold:
        whose = "1 claim needs" if untold == 1 else f"{untold} claims need"
        console.print(Text(f"{whose} cells that are not trained yet; the report names them", style="dim"))


def _as_printed(grid: drawing.Grid) -> RichTable:
    """In the thesis's shape: its columns, two lines a value."""
    table = RichTable(title=_title(grid), caption=grid.note or None, show_lines=True)
    for index, heading in enumerate(grid.headings):
        heading = heading.replace(" accuracy", "\naccuracy").replace(" speed-up", "\nspeed-up")
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for label, values in grid.rows:
        table.add_row(label, *(Text("\n".join(drawing.in_lines(value))) for value in values))
    return table


def _one_value_a_row(grid: drawing.Grid) -> RichTable:
    """For a terminal that is too narrow for the thesis's shape."""
    table = RichTable(title=_title(grid), caption=grid.note or None)
    for heading in (grid.headings[0] or "row", "column", "measured", "published"):
        table.add_column(heading, justify="left" if heading in (grid.headings[0], "column") else "right")
    for label, values in grid.rows:
        for heading, value in zip(grid.headings[1:], values, strict=True):
            if value:
                table.add_row(label, heading, *(Text(line) for line in drawing.in_lines(value)))
    return table


def _title(grid: drawing.Grid) -> str:
    return f"{grid.name.replace('-', ' ').capitalize()}. {grid.title}"
