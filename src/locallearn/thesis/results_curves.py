"""Curves of results: probes over depth, and accuracy or loss over epochs, of several seeds together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from locallearn.report.compare import Measured
from locallearn.report.plots import WIDTH, draw, new_axes
from locallearn.report.styles import LineStyle, run_style

KINDS = {
    "probe": ("depth [blocks]", "linear probe [%]"),
    "probes": ("epoch", "linear probe of the last module [%]"),
    "last_layer": ("epoch", "test accuracy [%]"),
    "loss": ("epoch", "training loss of the last module"),
    "modules": ("number of modules K", "test accuracy [%]"),
}
"""What is on each axis, by a panel's field."""

LEVEL = LineStyle("#111111", (4, 1.8), width=1.4)
"""How a network is drawn whose accuracy does not depend on the place."""


_MANY, _LEGEND = 5, 1.6
"""Curves from which on a legend stands beside them, and how wide it is [inches]."""


class MeasuredCurve(NamedTuple):
    """One network's curve.

    Attributes:
        label: what it is.
        style: how it is drawn; the same in every panel for the same place in it.
        x: depth or epoch.
        y: mean over seeds; accuracies in percent.
        spread: standard deviation over seeds; 0 for a single one.
        seeds: how many there are.
    """

    label: str
    style: LineStyle
    x: list[int]
    y: list[float]
    spread: list[float]
    seeds: int


def measured_curves(panel: Mapping[str, Any], measured: Measured) -> list[MeasuredCurve]:
    """The curves of a panel that something is measured of; none where that is a level alone, to compare curves with.

    Raises:
        ValueError: records of one cell are of different configurations, which are never put together.
    """
    found: list[MeasuredCurve] = []
    levels = [line for line in panel["lines"] if len({cell for _, cell in line.get("cells", ())}) == 1]
    for index, line in enumerate(line for line in panel["lines"] if line not in levels):
        if line.get("cells"):
            found += _over_cells(line, measured, run_style(index))
            continue
        records = measured.get(line["cell"], ())
        if len({record["digest"] for record in records}) > 1:
            raise ValueError(f"{line['cell']}: records of different configurations")
        series = [points for points in (_points(record, panel["field"]) for record in records) if points]
        if series:
            x = sorted(set.intersection(*(set(points) for points in series)))
            values = [[points[place] for points in series] for place in x]
            spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
            mean = [statistics.mean(v) for v in values]
            found.append(MeasuredCurve(line["label"], run_style(index), x, mean, spread, len(series)))
    return [curve for line in levels for curve in _over_cells(line, measured, LEVEL)] + found if found else []


def _over_cells(line: Mapping[str, Any], measured: Measured, style: LineStyle) -> list[MeasuredCurve]:
    """The accuracy of a cell for each place, over the seeds that it has; one place alone is no curve."""
    places = [(x, measured.get(cell, ())) for x, cell in line["cells"]]
    values = {x: [100 * record["accuracy"]["last_layer"] for record in records] for x, records in places if records}
    if len(values) < 2:
        return []
    spread = [statistics.stdev(found) if len(found) > 1 else 0.0 for found in values.values()]
    mean = [statistics.mean(found) for found in values.values()]
    return [MeasuredCurve(line["label"], style, list(values), mean, spread, min(map(len, values.values())))]


def _points(record: Mapping[str, Any], field: str) -> dict[int, float]:
    """Depth or epoch, and accuracy [%] or loss, of one record; empty where it has none."""
    if field == "probe":
        return {p["depth"]: 100 * p["accuracy"] for p in record.get("probe", {}).get("points", ())}
    if field == "probes":
        return {p["epoch"]: 100 * p["accuracy"] for p in record.get("probes", ())}
    scale = 1 if field == "loss" else 100
    return {p["epoch"]: scale * p[field] for p in record["curve"] if field in p}


def caption(panel: Mapping[str, Any]) -> str:
    """What a panel shows."""
    x, y = KINDS[panel["field"]]
    return f"{panel['title']}: {y} over {x}"


def curves_figure(curves: Sequence[MeasuredCurve], field: str, legend: bool = False) -> Figure:
    """Curves over depth or epochs, with the standard deviation over seeds as a band.

    Args:
        curves: what to draw.
        field: the panel's field.
        legend: put a legend into the picture, where it stands alone; of many curves beside them.
    """
    beside = _LEGEND if legend and len(curves) > _MANY else 0.0
    figure, axes = new_axes(KINDS[field][0], width=WIDTH + beside)
    figure.subplots_adjust(right=(WIDTH - 0.08) / (WIDTH + beside))
    for curve in curves:
        draw(axes, curve.x, curve.y, curve.label, curve.style)
        if curve.seeds > 1:
            low = [y - s for y, s in zip(curve.y, curve.spread, strict=True)]
            high = [y + s for y, s in zip(curve.y, curve.spread, strict=True)]
            axes.fill_between(curve.x, low, high, color=curve.style.colour, alpha=0.15, linewidth=0)
    if field == "modules":  # which double
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for curve in curves for x in curve.x})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        for line, curve in zip(list(axes.lines), curves, strict=True):
            line.set(marker="" if curve.style == LEVEL else "o", markersize=3.5)
    if beside:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    elif legend:
        axes.legend(fontsize=7, frameon=False, loc="best")
    return figure
