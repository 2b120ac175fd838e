"""Every table and figure by name, and the cells that each needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from locallearn.errors import UsageError
from locallearn.thesis import ablations, chapter4, methods2026, methods2026_published, published, sweep
from locallearn.thesis.chapter4_curves import CURVES
from locallearn.thesis.chapter4_tables import TABLES
from locallearn.thesis.layout import Curves, Figure, Row, Table, Value
from locallearn.thesis.matrix import cells

LAYOUTS: dict[str, Table | Figure | Curves] = {
    layout.name: layout
    for layout in (
        *published.CHAPTER3,
        ablations.TABLE,
        sweep.TABLE,
        methods2026.TABLE,
        methods2026.VIT_TABLE,
        methods2026.FIGURE,
        methods2026_published.TABLE,
        methods2026_published.GROUPS_TABLE,
        *TABLES,
        *CURVES,
    )
}
"""Every table and figure by name."""


def layout(name: str) -> Table | Figure | Curves:
    """A table or figure by name.

    Raises:
        UsageError: no such table.
    """
    if name not in LAYOUTS:
        raise UsageError(f"TABLE: {name!r} is not known; expected a cell or one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def cells_of(name: str) -> list[str]:
    """The cells of a table or figure, each once, in its order; a cell's name stands for itself.

    Raises:
        UsageError: there is neither such a table nor such a cell.
    """
    return [name] if name in cells() else list(dict.fromkeys(_cells(layout(name))))


def published_accuracies() -> dict[tuple[str, str], float]:
    """The accuracies [%] that the thesis prints, by cell and field."""
    tables = [found for found in LAYOUTS.values() if isinstance(found, Table)]
    return {
        (value.cell, value.field): float(value.published)
        for table in tables
        for value in _accuracies(table)
        if value.published is not None
    }


def table_of_cells(names: Sequence[str]) -> Table:
    """A table of single cells, one a row, at the accuracy that their first table has."""
    values = (value for found in LAYOUTS.values() if isinstance(found, Table) for value in _accuracies(found))
    first: dict[str, Value] = {}
    for value in values:
        first.setdefault(value.cell, value)
    rows = [Row(name, (first.get(name) or _unlisted(name),)) for name in names]
    return Table("cells", "Single cells", "Cell", ("Accuracy [%]",), tuple(rows))


def _accuracies(table: Table) -> Iterator[Value]:
    yield from (value for row in table.rows for value in row.values if value and value.is_accuracy)


def _unlisted(name: str) -> Value:
    config = cells()[name].config
    field = chapter4.FIELD if chapter4.is_self_supervised(config) else published.accuracy_field(config.method)
    return Value(name, field)


def _cells(found: Table | Figure | Curves) -> Iterator[str]:
    if isinstance(found, Table):
        yield from (value.cell for row in found.rows for value in row.values if value)
    elif isinstance(found, Figure):
        yield from (point.cell for panel in found.panels for point in panel.points)
    else:
        for line in (line for panel in found.panels for line in panel.lines):
            yield from [cell for _, cell in line.cells] or [line.cell]
