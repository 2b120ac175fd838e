"""Plots of runs, as matplotlib figures (no pyplot, so no global state); ``locallearn.report.svg`` renders them.

Figures carry no title, no vertical label and no legend: the page has captions with units, and one legend for all
plots of a run. A line's label is its meaning; it becomes the tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from locallearn.report.records import Node, RunRecord, node_of, series
from locallearn.report.styles import ENSEMBLE, LAST_LAYER, LineStyle, node_label, node_styles, run_style

_INK, _GRID = "#444444", "#e4e4e4"
WIDTH, _HEIGHT, _SMALL = 4.0, 2.5, 1.6  # inches; small, so that text can still be read 300 pixels wide
_STEPS = [1, 2, 5, 10]
_LOG_FROM = 30  # a loss that falls by more than this factor is drawn on a logarithmic axis


def accuracy_name(record: RunRecord, within: bool = False) -> str:
    """What a run's accuracies are: of its classifiers, or of neighbours; for within a sentence, or its beginning."""
    if record.protocol != "classifier":
        return "kNN accuracy"
    return "test accuracy" if within else "Test accuracy"


def loss_figure(record: RunRecord) -> Figure:
    """Training loss of every node over epochs."""
    figure, axes = new_axes("epoch")
    _draw_nodes(axes, record, record.train, "loss")
    _logarithmic_if_wide(axes)
    return figure


def training_accuracy_figure(record: RunRecord) -> Figure:
    """Training accuracy of every node's own head over epochs [%]."""
    figure, axes = new_axes("epoch")
    _draw_nodes(axes, record, record.train, "accuracy", scale=100)
    return figure


def test_accuracy_figure(record: RunRecord) -> Figure:
    """Test accuracy of every node over epochs [%], the last layer and the ensemble drawn strongest."""
    figure, axes = new_axes("epoch")
    epochs = series(record.evaluations, "epoch")
    if len(record.nodes) > 1:
        _draw_nodes(axes, record, record.evaluations, "accuracy", scale=100)
    draw(axes, epochs, series(record.evaluations, "last_layer"), "last layer", LAST_LAYER, scale=100)
    if len(record.nodes) > 1:  # the ensemble of a single node is that node
        draw(axes, epochs, series(record.evaluations, "ensemble"), "ensemble", ENSEMBLE, scale=100)
    return figure


def learning_rate_figure(record: RunRecord) -> Figure:
    """Learning rate over epochs."""
    return _small(record, "learning_rate", "learning rate")


def throughput_figure(record: RunRecord) -> Figure:
    """Training speed over epochs [images/s]."""
    figure = _small(record, "images_per_second", "images/s")
    rates = [rate for rate in series(record.train, "images_per_second") if math.isfinite(rate)]
    figure.axes[0].set_ylim(0, 1.15 * max(rates, default=1.0) or 1.0)
    return figure


def heatmap_figure(record: RunRecord) -> Figure:
    """Final test accuracy of every node [%] as a grid: modules are columns, groups are rows."""
    columns = list(dict.fromkeys(module for module, _ in record.nodes))
    rows = sorted({group for _, group in record.nodes})
    final = final_nodes(record)
    cells = np.array([[series([node_of(final, (m, g))], "accuracy")[0] for m in columns] for g in rows]) * 100
    width = max(WIDTH, 0.7 + 0.46 * len(columns))
    figure, axes = new_axes("module", height=0.6 + 0.32 * len(rows), width=width)
    axes.set_ylabel("group", fontsize=9, color=_INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [str(module) for module in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [str(group) for group in rows])
    mesh = axes.pcolormesh(np.ma.masked_invalid(cells), cmap="viridis", edgecolors="white", linewidth=1.5)
    axes.invert_yaxis()
    for (row, column), value in np.ndenumerate(cells):
        if math.isfinite(value):
            ink = "white" if _luminance(np.asarray(mesh.to_rgba(value))) < 0.36 else "black"
            axes.text(column + 0.5, row + 0.5, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8.5)
    return figure


def last_layer_by_epoch_figure(records: Sequence[RunRecord]) -> Figure:
    """Test accuracy of the last layer of every run over epochs [%]."""
    return _compare(records, "epoch", lambda record: series(record.evaluations, "epoch"))


def last_layer_by_time_figure(records: Sequence[RunRecord]) -> Figure:
    """Test accuracy of the last layer of every run over training time [%]; evaluation takes no time in it."""
    return _compare(records, "training time [s]", training_seconds)


def training_seconds(record: RunRecord) -> list[float]:
    """Seconds of training before each evaluation (NaN from an epoch on whose time is not known)."""
    spent = dict(zip(series(record.train, "epoch"), accumulate(series(record.train, "seconds")), strict=True))
    return [
        next((time for epoch, time in reversed(spent.items()) if epoch <= event["epoch"]), 0.0)
        for event in record.evaluations
    ]


def final_nodes(record: RunRecord) -> list[dict]:
    """Every node's final test accuracy: the summary's, else the last evaluation's."""
    if record.summary and record.summary.get("nodes"):
        return record.summary["nodes"]
    return record.evaluations[-1].get("nodes", []) if record.evaluations else []


def new_axes(x: str, height: float = _HEIGHT, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of one plot in the style of the reports, its x axis labelled ``x``; sizes are in inches."""
    figure = Figure(figsize=(width, height), facecolor="none")  # the page has a ground of its own
    axes = figure.add_subplot(facecolor="none")
    figure.subplots_adjust(left=0.5 / width, right=1 - 0.08 / width, bottom=0.46 / height, top=1 - 0.08 / height)
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8.5, labelcolor=_INK, color="#bbbbbb", length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(
        MaxNLocator(8, steps=_STEPS, integer=x in ("epoch", "depth [blocks]"), min_n_ticks=1)
    )
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    axes.ticklabel_format(useOffset=False)
    return figure, axes


def draw(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, style: LineStyle, scale: float = 1) -> None:
    """Draw one line with a tooltip; values that are not finite leave gaps."""
    values = [scale * value if math.isfinite(value) else math.nan for value in y]
    axes.plot(
        x,
        values,
        label=label,
        gid=label,
        color=style.colour,
        linestyle=(0, style.dash) if style.dash else "-",
        linewidth=style.width,
        alpha=style.opacity,
        marker="o" if len(x) < 3 else None,  # a line through one point is not seen
        markersize=4,
    )


def _draw_nodes(axes: Axes, record: RunRecord, events: Sequence[dict], key: str, scale: float = 1) -> None:
    nodes: dict[Node, LineStyle] = node_styles(record.nodes)
    for node, style in nodes.items():
        label = node_label(node) if len(nodes) > 1 else "network"
        draw(axes, series(events, "epoch"), series(events, key, node), label, style, scale)


def _small(record: RunRecord, key: str, label: str) -> Figure:
    figure, axes = new_axes("epoch", height=_SMALL)
    draw(axes, series(record.train, "epoch"), series(record.train, key), label, LineStyle("#0072b2", width=1.6))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    return figure


def _compare(records: Sequence[RunRecord], x_label: str, x: Callable[[RunRecord], list[float]]) -> Figure:
    figure, axes = new_axes(x_label)
    for index, record in enumerate(records):
        values = series(record.evaluations, "last_layer")
        draw(axes, x(record), values, record.name, run_style(index), scale=100)
    return figure


def _logarithmic_if_wide(axes: Axes) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0 or values.max() < _LOG_FROM * values.min():
        return
    axes.set_yscale("log")
    few_decades = values.max() < 1000 * values.min()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few_decades else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _luminance(rgba: np.ndarray) -> float:
    return float(np.dot(rgba[:3], (0.2126, 0.7152, 0.0722)))
