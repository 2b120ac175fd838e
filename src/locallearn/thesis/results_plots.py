"""Pictures of results: bubbles in the form of Figs. 3.5 to 3.7, and training curves of many cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from locallearn.report.plots import new_axes
from locallearn.report.styles import LineStyle

_COLOURS = {
    "e2e": "#111111",
    "DGL": "#0072b2",
    "InfoPro": "#d55e00",
    "GN-DGL G=2": "#009e73",
    "GN-DGL G=4": "#cc79a7",
    "GN-DGL G=6": "#6a51a3",
    "GN-DGL G=8": "#e69f00",
    "GN-DGL G=10": "#8c564b",
    "K=1 baseline": "#56b4e9",
    "single thread": "#8a8a8a",
}
_OTHER = "#bcbd22"
_LARGEST = 17.0
"""Diameter of the bubble of a network that costs as much as end to end [points]."""

_HEIGHT, _WIDTH = 3.2, 4.6
_SMALL: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top", "fontsize": 6.5}
_METHODS = {"e2e": "e2e", "dgl": "DGL", "infopro": "InfoPro", "single-thread": "single thread"}


@dataclass(frozen=True)
class Bubble:
    """A network in a figure.

    Attributes:
        method: decides its colour.
        label: what it is.
        accuracy: mean over seeds [%].
        spread: standard deviation over seeds [%]; NaN for a single one.
        largest_node: millions of multiply-accumulates.
        inference: multiply-accumulates of the whole network, as a share of end to end's.
        published: accuracy [%], where it is printed.
    """

    method: str
    label: str
    accuracy: float
    spread: float
    largest_node: float
    inference: float
    published: float | None


@dataclass(frozen=True)
class Curve:
    """Accuracy of one run: dictionaries with ``epoch`` and ``last_layer`` (a fraction)."""

    method: str
    label: str
    points: Sequence[Mapping[str, Any]]


def colour(method: str) -> str:
    """The colour of a method in every picture."""
    return _COLOURS.get(method, _OTHER)


def method_of(config: Mapping[str, Any]) -> str:
    """The method of a configuration as figures name it."""
    if config["method"] in _METHODS:
        return _METHODS[config["method"]]
    return "K=1 baseline" if config["depth"] == 1 else f"GN-DGL G={config['width'][0]}"


def legend(methods: Iterable[str]) -> list[tuple[str, LineStyle]]:
    """Methods and their colours, each once, always in the same order."""
    order = {method: place for place, method in enumerate(_COLOURS)}
    found = sorted(set(methods), key=lambda method: (order.get(method, len(order)), method))
    return [(method, LineStyle(colour(method), width=3)) for method in found]


def bubble_figure(bubbles: Sequence[Bubble], alone: bool = False) -> Figure:
    """Accuracy [%] against the largest node's multiply-accumulates; the area of a bubble is the cost of inference.

    Networks of one method are joined by a line. Hollow bubbles are published accuracies.

    Args:
        bubbles: the networks.
        alone: put a legend into the picture, where it stands alone.
    """
    figure, axes = new_axes("multiply-accumulates of the largest node [million]", height=_HEIGHT, width=_WIDTH)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    for method in dict.fromkeys(bubble.method for bubble in bubbles):
        _join(axes, method, [bubble for bubble in bubbles if bubble.method == method])
    for bubble in sorted(bubbles, key=lambda bubble: -bubble.inference):  # small ones on top
        _draw(axes, bubble)
    axes.margins(x=0.08, y=0.1)
    if alone:
        methods = [method for method, _ in legend(bubble.method for bubble in bubbles)]
        marks = [Line2D([], [], color=colour(method), marker="o", linewidth=0, label=method) for method in methods]
        axes.legend(handles=marks, fontsize=6.5, frameon=False, loc="best")
    return figure


def curve_figure(curves: Sequence[Curve]) -> Figure:
    """Test accuracy of the last layer over epochs [%], one line a run; nothing is averaged."""
    figure, axes = new_axes("epoch", height=_HEIGHT, width=_WIDTH)
    for curve in curves:
        axes.plot(
            [point["epoch"] for point in curve.points],
            [100 * point["last_layer"] for point in curve.points],
            color=colour(curve.method),
            linewidth=1.1,
            marker="o" if len(curve.points) < 3 else None,
            markersize=3,
            label=curve.label,
            gid=curve.label,
        )
    return figure


def _join(axes: Axes, method: str, bubbles: Sequence[Bubble]) -> None:
    if method in ("single thread", "K=1 baseline"):
        return  # these are separate networks, not steps of one series
    ordered = sorted(bubbles, key=lambda bubble: bubble.largest_node)
    x, y = [b.largest_node for b in ordered], [b.accuracy for b in ordered]
    axes.plot(x, y, color=colour(method), linewidth=0.8, alpha=0.6, label=method, gid=f"line {method}")


def _draw(axes: Axes, bubble: Bubble) -> None:
    size = _LARGEST * math.sqrt(bubble.inference)
    ink, x = colour(bubble.method), bubble.largest_node
    text = f"{bubble.label}: {bubble.accuracy:.2f} %, largest node {x:.2f} M, inference {bubble.inference:.2f} of e2e"
    if math.isfinite(bubble.spread):
        ends = [bubble.accuracy - bubble.spread, bubble.accuracy + bubble.spread]
        axes.plot(
            [x, x], ends, color=ink, linewidth=1, label=f"spread of {bubble.label}", gid=f"spread {bubble.label}"
        )
    axes.plot(
        [x], [bubble.accuracy], "o", color=ink, markersize=size, alpha=0.7, markeredgewidth=0, label=text, gid=text
    )
    place = bubble.label.rpartition(" ")[2]  # K=4, or G=2 where there is no K
    if "=" in place:
        axes.annotate(place, (x, bubble.accuracy), xytext=(0, -size / 2 - 1), **_SMALL, color=ink)
    if bubble.published is not None:
        text = f"{bubble.label}: {bubble.published:g} % published"
        axes.plot([x], [bubble.published], "o", color=ink, markersize=size, fillstyle="none", label=text, gid=text)
