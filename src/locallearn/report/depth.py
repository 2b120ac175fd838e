"""Depth curves: the accuracy of probes over the depth of the frozen network (Figs. 4.7-4.9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from locallearn.report import compare
from locallearn.report.plots import draw, new_axes
from locallearn.report.records import RunRecord, series
from locallearn.report.styles import LineStyle, run_style

DepthFigure = tuple[str, Callable[[Any], Figure]]
"""A caption, and what draws the picture of a run or of several."""


class ProbeTable(NamedTuple):
    """The figures of one probe record, as text."""

    protocol: str
    headings: list[str]
    rows: list[list[str]]


def run_figures(record: RunRecord) -> list[DepthFigure]:
    """The depth curve of each of a run's probe records."""
    return [(_caption(probe["protocol_text"]), partial(_figure, probe=probe)) for probe in record.probes]


def comparison_figures(records: Sequence[RunRecord]) -> list[DepthFigure]:
    """One picture for each protocol that several runs are probed by; runs look as in the other comparisons."""
    texts = [text for record in records for text in {probe["protocol_text"] for probe in record.probes}]
    shared = dict.fromkeys(text for text in texts if texts.count(text) > 1)
    return [(_caption(text), partial(_overlay, text=text)) for text in shared]


def tables(record: RunRecord) -> list[ProbeTable]:
    """The figures of every probe record of a run."""
    headings = ["depth", "block", "module", "features", "training accuracy [%]", "test accuracy [%]"]
    keys, accuracies = ("depth", "block", "module", "features"), ("train_accuracy", "accuracy")
    return [
        ProbeTable(
            f"{probe['protocol_text']}; after {probe['protocol'].get('step', compare.MISSING)} steps of the run",
            headings,
            [
                [*(str(point[key]) for key in keys), *(compare.percent(point[key]) for key in accuracies)]
                for point in probe["points"]
            ],
        )
        for probe in record.probes
    ]


def _caption(protocol: str) -> str:
    return f"Test accuracy of probes [%] over depth: {protocol}"


def _figure(record: RunRecord, probe: dict[str, Any]) -> Figure:
    figure, axes = new_axes("depth [blocks]")
    _curve(axes, probe, record.name, run_style(0))
    return figure


def _overlay(records: Sequence[RunRecord], text: str) -> Figure:
    figure, axes = new_axes("depth [blocks]")
    for index, record in enumerate(records):
        for probe in record.probes:
            if probe["protocol_text"] == text:
                _curve(axes, probe, record.name, run_style(index))
    return figure


def _curve(axes: Any, probe: dict[str, Any], name: str, style: LineStyle) -> None:
    """A line over all places, with a dot where a module ends."""
    points = probe["points"]
    draw(axes, series(points, "depth"), series(points, "accuracy"), name, style, scale=100)
    ends = [point for point in points if point["ends_module"]]
    axes.plot(
        series(ends, "depth"), [100 * y for y in series(ends, "accuracy")], "o", color=style.colour, markersize=4
    )
