"""How tables and figures are laid out: which cell stands where, and what is printed there."""

from __future__ import annotations

from dataclasses import dataclass

COSTS = ("largest_node", "activations", "parameters", "step", "traffic")
"""Fields that are costs of a cell: multiply-accumulates of the largest node [million], activation memory [MiB],
parameters [thousand], time a step [ms] and what nodes send each other in a step [MiB]."""


@dataclass(frozen=True)
class Value:
    """One number of a table.

    Attributes:
        cell: the cell that it is measured on.
        field: last_layer, ensemble, last_heads, linear_probe or held_out (accuracies),
            training_speedup or inference_speedup, or a cost: largest_node, activations, parameters, step or traffic.
        published: as printed; None where nothing is printed or the value is held out.
    """

    cell: str
    field: str
    published: str | None = None

    @property
    def is_accuracy(self) -> bool:
        """Whether it is an accuracy; all else is a cost."""
        return not self.field.endswith("_speedup") and self.field not in COSTS


@dataclass(frozen=True)
class Row:
    """A row of a table: its label, and a value or nothing in every column."""

    label: str
    values: tuple[Value | None, ...]


@dataclass(frozen=True)
class Table:
    """A table as the thesis prints it; a note says what its columns are, where headings do not."""

    name: str
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Point:
    """One network in a figure; ``field`` is the accuracy that it is drawn at."""

    cell: str
    method: str
    label: str
    field: str
    published: str | None = None


@dataclass(frozen=True)
class Panel:
    """One half of a figure: a model."""

    title: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Line:
    """One network in a figure of curves.

    Attributes:
        cell: the cell that is drawn.
        label: what it is.
        cells: of a panel of field ``modules``: K and a cell for each place of the line.
    """

    cell: str
    label: str
    cells: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class CurvePanel:
    """One picture of a figure of curves.

    Attributes:
        title: what it is of.
        field: what is drawn: probe (accuracy of linear probes over depth), probes (of the last module's over epochs),
            last_layer (test accuracy over epochs), loss (the last module's, over epochs) or modules (test accuracy
            over K, a cell each).
        lines: the networks.
    """

    title: str
    field: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Curves:
    """A figure of curves (Figs. 4.6 to 4.9 and A.3 to A.5)."""

    name: str
    title: str
    panels: tuple[CurvePanel, ...]


@dataclass(frozen=True)
class Figure:
    """Accuracy against the multiply-accumulates of the largest node (Figs. 3.5 to 3.7)."""

    name: str
    title: str
    panels: tuple[Panel, ...]
